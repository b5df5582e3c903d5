"""Getting SQLite's write-ahead log onto the disk: outside of transactions, and once for all that wait."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from nixsnap.errors import UnavailableError


class LogSync:
    """Syncs the log of a database that is committed to with `synchronous = NORMAL`.

    In that mode SQLite writes a transaction's pages to the log, where the next transaction and readers find them, but
    syncs it only when it copies it into the database file or begins it anew (sqlite.org/pragma.html, "synchronous").
    With `FULL` it would at each commit do the very `fdatasync` that is done here, and all other writers would wait for
    it. A log that a power cut left short ends with its last whole transaction, as each frame's checksum covers all that
    came before (sqlite.org/fileformat2.html, 4.2). So a sync makes durable whatever was committed before it.

    Args:
        database: The database file, in that mode and open. The descriptor on its log is a second one: of the locks that
            closing it would drop SQLite has none there, they are on the database and on its `-shm` file.

    Raises:
        UnavailableError: There is no log, or it cannot be opened.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._guard = threading.Lock()  # held by who syncs
        self._committed = 0
        self._synced = 0
        self._failure = ""
        try:
            sync_directory(database.parent)  # the log itself must be there again after a power cut
            self._fd = os.open(f"{database}-wal", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise UnavailableError(
                f"the log of metadata {database} cannot be synced: {exc.strerror}"
            ) from exc

    def committed(self) -> int:
        """Note that a transaction has been committed, and return its number. Called by one thread at a time."""
        self._committed += 1
        return self._committed

    def sync(self, number: int) -> None:
        """Return once the transaction with this number, and so all before it, is on disk.

        Raises:
            UnavailableError: It may not be there, nor may any later one ever be: after a sync has failed the kernel
                takes the pages for clean, so that another one would succeed without having written them
                (lwn.net/Articles/752063).
        """
        with self._guard:
            if number <= self._synced:
                return
            self.check()
            newest = self._committed
            try:
                os.fdatasync(self._fd)
            except OSError as exc:
                self._failure = os.strerror(exc.errno or 0)
                self.check()
            self._synced = newest

    def check(self) -> None:
        """Refuse to go on after a sync has failed.

        Raises:
            UnavailableError: One has.
        """
        if self._failure:
            raise UnavailableError(
                f"the log of metadata {self._database} could not be synced: {self._failure}; "
                "what was written last may be lost",
                hint="look after the disk, then restart nixsnap",
            )

    def close(self) -> None:
        """Sync what is not yet, and close the log; the error is that of `sync`."""
        try:
            self.sync(self._committed)
        finally:
            with self._guard:
                os.close(self._fd)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the entries of a directory durable; an OSError if that fails."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
