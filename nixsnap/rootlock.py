"""One daemon a root directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nixsnap.errors import FailedPreconditionError


@contextmanager
def hold_root(lock: Path) -> Iterator[None]:
    """Hold the lock file of a root directory.

    A lock goes with the process that holds it, however it ends; a file with a pid in it does not.

    Raises:
        FailedPreconditionError: Another process holds it.
        OSError: The file cannot be made.
    """
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise FailedPreconditionError(
            f"root {str(lock.parent)!r} is in use by another nixsnap (pid {holder or 'unknown'})",
            hint="stop that one, or give this one a root of its own with --root",
        ) from exc
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)  # for the message above alone
        yield
    finally:
        os.close(fd)
