"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from nixsnap.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from nixsnap.nix.storepath import shorten

_MODE: Final = 0o666  # less the umask, as open(2) has it
# What file systems without unnamed files answer; EISDIR is a kernel's that does not know O_TMPFILE
# (open(2)).
_NO_UNNAMED_FILES: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name when the block ends, and never does if the block raises.

    A file of that name is replaced then. A pipe or a device (`/dev/stdout`) is written to as it is.

    Raises:
        InvalidArgumentError: `path` is a directory.
        NotFoundError: It is in none.
        ResourceExhaustedError: The disk is full.
        OSError: The file cannot be made.
    """
    target = Path(path)
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise InvalidArgumentError(f"{shorten(path)} is a directory")
    if not target.resolve().parent.is_dir():
        raise NotFoundError(f"there is no directory to write {shorten(path)} to")
    try:
        if stat.S_ISREG(mode):
            yield from _replaced(target.resolve())
        else:
            with target.open("wb") as stream:
                yield stream
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceExhaustedError(f"no room for {shorten(path)}: {exc.strerror}") from exc
        raise


def _replaced(target: Path) -> Iterator[BinaryIO]:
    temporary = target.parent / f".nix2container-{secrets.token_hex(8)}"
    fd, named = _open_temporary(temporary)
    try:
        with os.fdopen(fd, "wb") as stream:
            yield stream
            stream.flush()
            if not named:
                _name(fd, temporary)
                named = True
        temporary.rename(target)
    except BaseException:
        if named:
            temporary.unlink(missing_ok=True)
        raise


def _open_temporary(name: Path) -> tuple[int, bool]:
    """Open a file without a name, which not even a kill leaves behind; where that cannot be, `name`.

    Returns:
        The descriptor, and whether the file has the name.
    """
    try:
        return os.open(name.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, _MODE), False
    except OSError as exc:
        if exc.errno not in _NO_UNNAMED_FILES:
            raise
    return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _MODE), True


def _name(fd: int, name: Path) -> None:
    """Give an unnamed file a name by way of /proc: linkat(2) with an empty path takes CAP_DAC_READ_SEARCH."""
    directory_fd = os.open(name.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The directory is passed as a descriptor because os.link follows the source only then: without one
        # it calls link(2), which does not on Linux, whatever `follow_symlinks` says (CPython issue 81793).
        os.link(f"/proc/self/fd/{fd}", name.name, dst_dir_fd=directory_fd, follow_symlinks=True)
    finally:
        os.close(directory_fd)
