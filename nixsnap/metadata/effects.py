"""What operations do to files beside their rows, and how both end up on disk together or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final

import attrs

from nixsnap.errors import UnavailableError

_log: Final = logging.getLogger(__name__)


@attrs.define
class Effects:
    """The directories to sync before a transaction commits, and the steps that undo files if it does not."""

    _directories: list[int | str] = attrs.field(factory=list, init=False)
    _compensations: list[Callable[[], object]] = attrs.field(factory=list, init=False)

    def add_directory(self, directory: int | str | os.PathLike[str]) -> None:
        """Note a directory, by path or descriptor, to be synced."""
        self._directories.append(directory if isinstance(directory, int) else os.fspath(directory))

    def add_compensation(self, compensate: Callable[[], object]) -> None:
        """Note a step that undoes something."""
        self._compensations.append(compensate)

    def mark(self) -> tuple[int, int]:
        """A place to undo back to."""
        return len(self._directories), len(self._compensations)

    def undo(self, mark: tuple[int, int] = (0, 0)) -> None:
        """Forget directories noted since the mark, and run compensations, last first.

        A compensation that fails is logged, for the error that led here is the one to tell.
        """
        directories, compensations = mark
        del self._directories[directories:]
        while len(self._compensations) > compensations:
            try:
                self._compensations.pop()()
            except Exception:  # noqa: BLE001 - see above
                _log.exception("undoing the files of a failed operation failed")

    def sync(self) -> None:
        """Make the entries of each directory durable.

        Raises:
            UnavailableError: One of them cannot be synced.
        """
        for directory in dict.fromkeys(self._directories):
            try:
                if isinstance(directory, int):
                    os.fsync(directory)
                else:
                    sync_directory(directory)
            except OSError as exc:
                raise UnavailableError(f"directory {directory} cannot be synced: {exc.strerror}") from exc

    def clear(self) -> None:
        """Forget everything: the transaction is on disk."""
        self._directories.clear()
        self._compensations.clear()


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the entries of a directory durable; an OSError if that fails."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
