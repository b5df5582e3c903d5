"""One private directory for all that a run starts, with a lock that tells a live run from a dead one."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

from lab.mounts import mounts_below, unmount_below
from lab.processes import kill_naming

PREFIX = "nixsnap-lab."
"""Our directories' names begin so, below the system's temporary directory; nothing else is ever swept."""


@attrs.define(kw_only=True, eq=False)
class Workspace:
    """A short-named directory (Unix socket paths end at 107 bytes) that cleans up after itself.

    While it lives it holds a lock on its directory. A directory of ours whose lock is free belongs to a run
    that was killed: `create` ends that run's processes, takes down its mounts and removes it.
    """

    path: Path
    keep: bool = False
    _lock_fd: int = attrs.field()
    _numbers: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

    @classmethod
    def create(cls, *, keep: bool = False) -> Workspace:
        """Sweep what dead runs left, then make a new directory, locked and readable by root alone.

        With `keep` the directory's files stay for a look afterwards; processes and mounts go all the same.
        """
        with _one_at_a_time():
            _sweep()
            path = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock_fd = _lock(path)
        if lock_fd is None:
            raise RuntimeError(f"someone else locked {path}, which was made a moment ago")
        return cls(path=path, keep=keep, lock_fd=lock_fd)

    def subdirectory(self) -> Path:
        """Make a new directory in it, with a short name."""
        directory = self.path / str(next(self._numbers))
        directory.mkdir()
        return directory

    def close(self) -> None:
        """End processes, take down mounts and remove the files of this workspace."""
        try:
            _clear(self.path, keep=self.keep)
        finally:
            os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(path: Path) -> int | None:
    """Lock the directory, or return None when a live run holds it. The lock goes with the process."""
    directory_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(directory_fd)
        return None
    return directory_fd


def _clear(path: Path, *, keep: bool) -> None:
    kill_naming(path)
    unmount_below(path)
    if keep:
        return
    if mounts_below(path):  # removing through a mount would delete what is mounted, /nix/store included
        raise RuntimeError(f"still mounted below {path}: {mounts_below(path)}")
    shutil.rmtree(path)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep another run from sweeping a directory between its making and its locking."""
    parent_fd = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(parent_fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(parent_fd)


def sweep() -> list[Path]:
    """Clear the directories that killed runs left behind and return them."""
    with _one_at_a_time():
        return _sweep()


def _sweep() -> list[Path]:
    swept = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.geteuid():
            continue
        lock_fd = _lock(path)
        if lock_fd is None:
            continue
        try:
            _clear(path, keep=False)
        finally:
            os.close(lock_fd)
        swept.append(path)
    return swept
