"""Unix sockets: making room for one, and taking it away."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nixsnap.errors import FailedPreconditionError, InvalidArgumentError

_PATH_BYTES: Final = 107  # sun_path less its NUL, unix(7)


@contextmanager
def socket_place(
    address: Path, *, kind: socket.SocketKind = socket.SOCK_STREAM, directory_mode: int = 0o700
) -> Iterator[None]:
    """Make room for a socket at `address` and take it away afterwards.

    Args:
        address: Where.
        kind: Its type.
        directory_mode: Permissions of its directory, if that has to be made.

    Raises:
        InvalidArgumentError: The path is too long for a socket.
        FailedPreconditionError: Something other than a dead socket is there, or no socket can be made there.
    """
    if len(os.fsencode(address)) > _PATH_BYTES:
        raise InvalidArgumentError(f"address {str(address)!r} is longer than {_PATH_BYTES} bytes")
    try:
        address.parent.mkdir(mode=directory_mode, parents=True, exist_ok=True)
        _remove_stale(address, kind)
        _try_to_make(address, kind)
    except OSError as exc:
        raise FailedPreconditionError(
            f"cannot make a socket at {str(address)!r}: {exc.strerror}",
            hint="give it another place with --address, where this user may write",
        ) from exc
    try:
        yield
    finally:
        address.unlink(missing_ok=True)


def _try_to_make(address: Path, kind: socket.SocketKind) -> None:
    """Make a socket that nobody serves, and remove it: gRPC does not tell why it cannot."""
    with socket.socket(socket.AF_UNIX, kind) as trial:
        trial.bind(str(address))
    address.unlink()


def _remove_stale(address: Path, kind: socket.SocketKind) -> None:
    if not address.is_socket():
        if os.path.lexists(address):
            raise FailedPreconditionError(f"address {str(address)!r} is there and is no socket")
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(str(address))
        except ConnectionRefusedError:  # nobody listens: its server was killed
            address.unlink()
        else:
            raise FailedPreconditionError(
                f"address {str(address)!r} is served by another process",
                hint="give this one its own with --address",
            )
