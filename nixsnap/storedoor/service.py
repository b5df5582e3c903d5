"""The door as a process: its socket, systemd's or its own, and its end."""

from __future__ import annotations

import grp
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nixsnap.errors import InvalidArgumentError, PermissionDeniedError
from nixsnap.notify import notify
from nixsnap.sockets import socket_place
from nixsnap.stopsignal import stop_signal
from nixsnap.storedoor import protocol
from nixsnap.storedoor.grant import check_store
from nixsnap.storedoor.server import Door, Server

log = logging.getLogger(__name__)

_FIRST_PASSED: Final = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_BACKLOG: Final = 128


def serve(store: Path, *, address: Path | None, group: str | None, idle_seconds: float | None) -> None:
    """Run until SIGTERM or SIGINT, or until nobody has come for `idle_seconds`.

    Raises:
        NixsnapError: We are not root, or the store or the socket is of no use.
        OSError: The socket cannot be made.
    """
    if os.geteuid() != 0:
        raise PermissionDeniedError("only root can hand out mounts of its store")
    check_store(store)
    with stop_signal() as stop, _listening(address, group) as listener:
        notify("READY=1")
        log.info("serving store=%s address=%s", store, listener.getsockname())
        Server(Door(store=store), listener).run(stop, idle_seconds=idle_seconds)
        notify("STOPPING=1")
    log.info("stopped")


@contextmanager
def _listening(address: Path | None, group: str | None) -> Iterator[socket.socket]:
    passed = _passed_socket()
    if passed is not None:
        with passed:
            if address is not None or group is not None:
                raise InvalidArgumentError(
                    "--address and --group are the socket's own when it is passed",
                    hint="set ListenSequentialPacket= and SocketGroup= in the .socket unit",
                )
            yield passed
        return
    with _own_socket(address or protocol.DEFAULT_ADDRESS, group) as listener:
        yield listener


def _passed_socket() -> socket.socket | None:
    """The socket that a service manager passes us, sd_listen_fds(3).

    Raises:
        InvalidArgumentError: It is none that we could serve on, or there are several.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "")
    if count != "1":
        raise InvalidArgumentError(f"one socket is to be passed, not {count!r}")
    os.set_inheritable(_FIRST_PASSED, False)
    listener = socket.socket(fileno=_FIRST_PASSED)
    if (
        listener.family != socket.AF_UNIX
        or listener.type != socket.SOCK_SEQPACKET
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        listener.close()
        raise InvalidArgumentError(
            "the socket that was passed is of another kind",
            hint="it must be made by ListenSequentialPacket=, with Accept=no",
        )
    return listener


@contextmanager
def _own_socket(address: Path, group: str | None) -> Iterator[socket.socket]:
    gid = _group_id(group)
    with (
        socket_place(address, kind=socket.SOCK_SEQPACKET, directory_mode=0o755),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as listener,
    ):
        # Until it listens nobody can connect, so its mode may follow.
        listener.bind(str(address))
        if gid is None:
            address.chmod(0o666)  # who it is, the kernel says
        else:
            os.chown(address, 0, gid)
            address.chmod(0o660)
        listener.listen(_BACKLOG)
        yield listener


def _group_id(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as exc:
        raise InvalidArgumentError(f"there is no group {group!r}") from exc
