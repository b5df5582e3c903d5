"""Room to remove things on a disk that is full: deleting a row takes some pages of the database's log first."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import attrs

from nixsnap.errors import ResourceExhaustedError

log = logging.getLogger(__name__)

T = TypeVar("T")

_BYTES: Final = 1 << 20  # the log of a removal has some five pages of 4 KiB, its index 32 KiB


@attrs.define
class Reserve:
    """A file that is there to be given up.

    Args:
        path: The file.
    """

    _path: Path
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def refill(self) -> None:
        """Allocate the file unless it is there; a disk that has no room for it now may have it later."""
        with self._lock:
            if self._path.exists():
                return
            try:
                self._allocate()
            except OSError as exc:
                self._path.unlink(missing_ok=True)
                log.warning("no room for the reserve that removals on a full disk need error=%s", exc)

    def _allocate(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, _BYTES)
        finally:
            os.close(fd)

    def spend(self, removal: Callable[[], T]) -> T:
        """Run a removal; if it fails for want of room, give the file up and run it again.

        Raises:
            ResourceExhaustedError: That was not enough, or the file had been given up before.
        """
        try:
            return removal()
        except ResourceExhaustedError:
            with self._lock:
                if not self._path.exists():
                    raise
                self._path.unlink()
            log.warning("the disk is full; gave up the reserve so that a snapshot can be removed")
            return removal()
