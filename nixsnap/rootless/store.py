"""Nix: a store that the user can read, and a way to have paths added to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nixsnap.config import Config
from nixsnap.places import user_places
from nixsnap.rootless import door
from nixsnap.rootless.findings import Finding, missing, note, ok
from nixsnap.rootless.machine import Machine

_ACCESS: Final = "store access"
_DAEMON: Final = "/nix/var/nix/daemon-socket/socket"


def check(machine: Machine, config: Config) -> Iterator[Finding]:
    """Look at the programs and the store of a configuration."""
    program = machine.program("nix-store")
    if program is None:
        remedy = "install Nix (https://nixos.org/download), or put it on the service's PATH"
        yield missing("nix", "nix-store is not on PATH", remedy)
    else:
        yield ok("nix", str(program))
    yield _readable(machine, config.host_store)
    yield _reached(machine, config)
    yield _ownership(machine, config.host_store)
    yield door.check(machine, config)


def _readable(machine: Machine, store: Path) -> Finding:
    if not machine.path(store).is_dir():
        remedy = "install Nix, or set store_root to where your store lies"
        return missing("store", f"{store} is not there", remedy)
    if not machine.may(store, os.R_OK | os.X_OK):
        return missing("store", f"{machine.user} may not read {store}", f"as root: chmod a+rx {store}")
    return ok("store", f"{store} can be read")


def _reached(machine: Machine, config: Config) -> Finding:
    """How paths get into the store."""
    if config.external_builder is not None:
        return ok(_ACCESS, f"paths are got by {config.external_builder}")
    if config.store_root is None:
        return _reached_as_configured(machine)
    if machine.may(config.store_root, os.W_OK):
        return ok(_ACCESS, f"{config.store_root} is your own")
    remedy = f"as root: chown -R {machine.user} {config.store_root}; or choose another store_root"
    return missing(_ACCESS, f"you may not write to store_root, {config.store_root}", remedy)


def _reached_as_configured(machine: Machine) -> Finding:
    remote = machine.environment.get("NIX_REMOTE", "")
    address = machine.environment.get("NIX_DAEMON_SOCKET_PATH", _DAEMON)
    if remote.startswith("unix://"):
        address = remote.removeprefix("unix://")
    elif remote not in {"", "auto", "daemon"}:
        return ok(_ACCESS, f"NIX_REMOTE says {remote}")
    if machine.may("/nix/var/nix/db", os.W_OK):
        return ok(_ACCESS, "the store is your own (single-user Nix)")
    if (refused := _cannot_connect(machine.path(address))) is None:
        return ok(_ACCESS, f"a Nix daemon answers on {address}")
    own = user_places(machine.environment).root.parent / "nix/root"
    return missing(
        _ACCESS,
        f"no Nix daemon answers on {address} ({refused}), and the store is not yours",
        "as root: systemctl start nix-daemon.socket; or, in the configuration, a store of your own:"
        f' store_root = "{own}"',
    )


def _ownership(machine: Machine, store: Path) -> Finding:
    name = "store ownership"
    path = machine.path(store)
    if path.exists() and path.stat().st_uid == machine.uid:
        return ok(name, f"{store} is yours, so containers see it as root's")
    return note(
        name,
        f"{store} belongs to another user, so `bind` views show it as nobody's (nobody:nogroup)",
        "harmless for most programs; for those that look, the store door, or a store of your own (store_root)",
    )


def _cannot_connect(path: Path) -> str | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except OSError as error:
            return error.strerror or str(error)
    return None
