"""The user's side: ask the door for the machine's store, and attach it in the mount namespace that we are in."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nixsnap.errors import NixsnapError, NotFoundError, UnavailableError
from nixsnap.mounts import features, kernel
from nixsnap.mounts.values import OwnedFd
from nixsnap.storedoor import protocol

log = logging.getLogger(__name__)

# The door looks us up in a user database that may be far away; but nothing starts meanwhile.
_ANSWER_SECONDS: Final = 15.0


@contextmanager
def shown_store(store: Path, *, door: Path | None, target: Path, shows_owners: bool = True) -> Iterator[Path]:
    """Give where rootfs views take the store from: `store` itself, or a mount of it that shows its owner as root.

    The second where `store` shows as nobody's (so in a user namespace, of a store that is root's outside it) and the
    door at `door` opens; else why not is said in the log, once. The mount is taken off at the end; rootfs views that
    are made of it keep it alive.

    Args:
        store: The store on this host.
        door: The door's socket; None: do not ask.
        target: A directory to mount it on, made if it is not there.
        shows_owners: Whether rootfs views show the owners of the store's files; if not, there is nothing to mend.
    """
    _take_down(target)  # what a killed daemon left: its door may since have changed
    if not shows_owners or not is_nobodys(store):
        yield store
        return
    reason = "no store_door is configured" if door is None else _attach(store, door, target)
    if reason is not None:
        log.warning("files of the store show as nobody's in containers store=%s reason=%r", store, reason)
        yield store
        return
    log.info("files of the store show as root's in containers store=%s door=%s", store, door)
    try:
        yield target
    finally:
        _take_down(target)


def is_nobodys(store: Path) -> bool:
    """Whether the owner of a store has no id in the user namespace that we are in."""
    if features.has_all_ids():
        return False
    try:
        owner = store.stat().st_uid
    except OSError:  # whoever needs it will say so
        return False
    return owner == int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))


def _attach(store: Path, door: Path, target: Path) -> str | None:
    """Attach what the door hands out; return why not."""
    try:
        with ask(door) as tree:
            _check_same(tree, store)
            target.mkdir(mode=0o700, exist_ok=True)
            kernel.attach(tree, target)
    except (NixsnapError, OSError) as exc:
        return str(exc)
    return None


def why_closed(store: Path, *, door: Path) -> str | None:
    """Ask a door for a store, attach nothing, and return why it does not open; None if it does."""
    try:
        with ask(door) as tree:
            _check_same(tree, store)
    except (NixsnapError, OSError) as exc:
        return str(exc)
    return None


def ask(door: Path) -> OwnedFd:
    """Return a detached mount of the machine's store, as the door at a socket hands it out.

    Raises:
        NotFoundError: There is no door.
        PermissionDeniedError: It refuses.
        UnavailableError: It does not answer, or makes no sense.
        OSError: The socket cannot be reached.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        _limit_waits(connection)
        try:
            connection.connect(str(door))
            connection.send(protocol.REQUEST)
        except BlockingIOError as exc:
            raise UnavailableError(f"the store door at {str(door)!r} lets nobody in") from exc
        except FileNotFoundError as exc:
            raise NotFoundError(f"there is no store door at {str(door)!r}") from exc
        except BrokenPipeError:
            pass  # it has refused already, and its reason waits to be read
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, str(door)) from exc
        try:
            record, descriptors, _flags, _address = socket.recv_fds(connection, protocol.ANSWER_BYTES, 1)
        except BlockingIOError as exc:
            raise UnavailableError(f"the store door at {str(door)!r} does not answer") from exc
    tree = OwnedFd(descriptors[0]) if descriptors else None
    try:
        protocol.check_answer(record)
    except NixsnapError:
        if tree is not None:
            tree.close()
        raise
    if tree is None:
        raise UnavailableError(f"the store door at {str(door)!r} grants a mount, but sends none")
    return tree


def _limit_waits(connection: socket.socket) -> None:
    """Have the kernel end what lasts too long, with EAGAIN.

    Python's own timeout makes the socket non-blocking, and then connect(2) does not wait for a place in a queue that is
    full, as it is while somebody floods the door: it fails at once (unix(7), EAGAIN).
    """
    whole, part = divmod(_ANSWER_SECONDS, 1)
    timeval = struct.pack("@ll", int(whole), int(part * 1e6))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, timeval)


def _check_same(tree: OwnedFd, store: Path) -> None:
    """Return if a mount is of the very directory that we take for the store.

    Raises:
        UnavailableError: It is of another, as when we use a store elsewhere.
    """
    shown, ours = os.fstat(tree.fileno()), store.stat()
    if (shown.st_dev, shown.st_ino) != (ours.st_dev, ours.st_ino):
        raise UnavailableError("the store door shows another store than ours")


def _take_down(target: Path) -> None:
    """Take everything off a mount point and remove it, where it is there."""
    try:
        while kernel.probe_mount(target).is_root:
            kernel.detach(target)
        target.rmdir()
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
