"""Which way leads to the store: what is configured, what the environment says, and what answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nixsnap.config import Config, NixAccess
from nixsnap.nix.builder import ExternalBuilder
from nixsnap.nix.engine import NixRealiser
from nixsnap.nix.options import nix_environment
from nixsnap.nix.program import ProgramStore
from nixsnap.nix.realise import Realiser
from nixsnap.nix.state import state_directory
from nixsnap.nix.store import NixStore
from nixsnap.nix.worker.session import DaemonStore
from nixsnap.nix.worker.transport import ProcessTransport, SocketTransport, Transport

log = logging.getLogger(__name__)

_STATE_DIR: Final = "/nix/var/nix"
_SOCKET: Final = "daemon-socket/socket"


def make_realiser(config: Config) -> Realiser:
    """The realiser that a configuration asks for."""
    if config.external_builder is not None:
        return ExternalBuilder(program=config.external_builder, store=config.host_store, config=config.nix)
    return NixRealiser(
        nix=choose_store(config),
        store=config.host_store,
        config=config.nix,
        state=state_directory(config.store_root),
    )


def choose_store(config: Config) -> NixStore:
    """The way to the store that a configuration asks for."""
    if config.nix.access is NixAccess.PROGRAM:
        return ProgramStore(config=config)
    socket = daemon_socket(config.store_root)
    if config.nix.access is NixAccess.DAEMON:
        path = socket or Path(_STATE_DIR) / _SOCKET
        return DaemonStore(connect=lambda: SocketTransport(path), config=config.nix)
    return DaemonStore(connect=_any_daemon(config, socket), config=config.nix)


def daemon_socket(store_root: Path | None) -> Path | None:
    """Where a daemon of the store would listen; None if the environment names a store that has none."""
    if store_root is not None:
        return store_root / _STATE_DIR.lstrip("/") / _SOCKET
    remote = os.environ.get("NIX_REMOTE", "")
    if remote.startswith("unix://") and (path := remote.removeprefix("unix://").partition("?")[0]):
        return Path(path)
    if remote not in {"", "auto", "daemon", "unix://"}:
        return None
    state = os.environ.get("NIX_STATE_DIR") or _STATE_DIR
    return Path(os.environ.get("NIX_DAEMON_SOCKET_PATH") or f"{state}/{_SOCKET}")


def _any_daemon(config: Config, socket: Path | None) -> Callable[[], Transport]:
    """Connects to the daemon that answers on the socket, if one does today, else to a process of our own.

    The latter takes one start for all questions of a call, where `nix-store` takes one for each.
    """
    store = () if config.store_root is None else ("--store", str(config.store_root))
    arguments = ("nix-daemon", "--stdio", *store)

    def connect() -> Transport:
        if socket is not None:
            try:
                return SocketTransport(socket)
            except OSError as exc:
                log.debug("no Nix daemon answers socket=%s error=%s", socket, exc)
        return ProcessTransport(arguments, environment=nix_environment(config))

    return connect
