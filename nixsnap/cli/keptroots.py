"""The directory of roots that `nixsnap realise --root` makes: whole or not at all, and of one run of the command."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nixsnap.errors import InvalidArgumentError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def kept_roots(root: Path) -> Iterator[int]:
    """Have a block make numbered directories of roots in `root`, in place of those that an earlier one made.

    What was there holds until the block has ended well, and is removed then. If it does not end well, what it made is
    removed, and the directory too if it was not there before. Of several runs at a time the next one begins when the
    one before it has ended.

    Args:
        root: The directory, absolute.

    Yields:
        The first number that is free, with all that follow.

    Raises:
        InvalidArgumentError: It holds something else, or cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            was_there = stack.enter_context(_held(root))
            before = _numbered(root)
        except OSError as exc:
            raise InvalidArgumentError(
                f"--root {str(root)!r} cannot be made a directory of roots: {exc.strerror}",
                hint="name a directory that is not there yet, where you may write",
            ) from exc
        doomed: set[Path] | None = None
        try:
            yield max((int(path.name) for path in before), default=0) + 1
            doomed = before
        finally:
            for path in _numbered(root) - before if doomed is None else doomed:
                shutil.rmtree(path)
            if doomed is None and not was_there:
                root.rmdir()


@contextlib.contextmanager
def _held(root: Path) -> Iterator[bool]:
    """Make a directory, and keep other runs out of it; whether it was there before."""
    while True:
        was_there = root.exists()
        root.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # removed just now by the run that had made it and failed
            continue
        try:
            _lock(fd, root)
            if _is_still(root, fd):
                yield was_there
                return
        finally:
            os.close(fd)


def _lock(fd: int, root: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("waiting for another run with --root %s", root)
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as exc:  # NFS locks only what is open for writing, and a directory never is
        log.debug("cannot keep other runs out root=%s error=%s", root, exc)


def _is_still(root: Path, fd: int) -> bool:
    """Whether the directory was not removed while we waited."""
    try:
        return os.path.samestat(root.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _numbered(root: Path) -> set[Path]:
    """The directories of roots."""
    found = set(root.iterdir())
    for path in found:
        if not path.name.isdecimal() or path.is_symlink() or not path.is_dir():
            raise InvalidArgumentError(
                f"--root {str(root)!r} is no directory of roots: it holds {path.name!r}",
                hint="name a directory that is not there yet, or one that an earlier --root made",
            )
    return found
