"""One SQLite connection: settings, transactions, and SQLite's errors turned into ours.

Nothing here knows what the database is about. `sqlite3.IntegrityError` passes through untouched: a violated
constraint is the domain's to explain.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from nixsnap.errors import (
    DataLossError,
    NixsnapError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)

Row: TypeAlias = tuple[Any, ...]
Parameters: TypeAlias = tuple[Any, ...]

BUSY_TIMEOUT_SECONDS: Final = 5.0
"""How long a write waits for another process (an import, say) to end its transaction."""

# Every statement of ours fits, so that none is prepared twice.
_CACHED_STATEMENTS: Final = 64

_SETTINGS: Final = (
    # COMMIT leaves the log unsynced: `LogSync` syncs it, for several commits at once, before they are acknowledged.
    "PRAGMA synchronous = NORMAL",
    "PRAGMA foreign_keys = ON",
    # Debian compiles SQLite with SECURE_DELETE, which zeroes what is freed and so dirties more pages.
    "PRAGMA secure_delete = OFF",
    # The file is input too: refuse SQL functions hidden in a tampered schema, and notice broken pages early.
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    # 1 MiB of page cache a connection; the hot pages are few and the rest is in the kernel's cache.
    "PRAGMA cache_size = -1024",
    # After a burst the log shrinks back to this when it is next restarted.
    "PRAGMA journal_size_limit = 16777216",
    # The write queue copies the log into the file between batches; this is for when it does not get to it.
    "PRAGMA wal_autocheckpoint = 4000",
)

# For STRICT tables; RETURNING came with 3.35.
_OLDEST_SQLITE: Final = (3, 37, 0)

# The second is what a full disk makes of the shared memory file beside the log.
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNAVAILABLE: Final = {
    sqlite3.SQLITE_BUSY: "another process holds its lock",
    sqlite3.SQLITE_LOCKED: "another connection holds its lock",
    sqlite3.SQLITE_READONLY: "it cannot be written",
    sqlite3.SQLITE_IOERR: "reading or writing it failed",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_PERM: "access is denied",
    sqlite3.SQLITE_AUTH: "access is denied",
    sqlite3.SQLITE_PROTOCOL: "its lock could not be had",
    sqlite3.SQLITE_NOLFS: "it is too large for its file system",
}


def translate(path: Path, exc: sqlite3.Error) -> NixsnapError | None:
    """The error to raise instead of `exc`; None if it is not about the file, but a bug or a constraint.

    Args:
        path: The database file, which the message names.
        exc: What sqlite3 raised; raise the result `from` it.
    """
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        return None
    reason = f"{exc} [{exc.sqlite_errorname}]"
    primary = code & 0xFF
    if primary in _FULL or code in _FULL:
        return ResourceExhaustedError(f"metadata {path}: no space left: {reason}")
    if primary in _DAMAGED:
        return DataLossError(
            f"metadata {path}: the file is damaged or no database: {reason}",
            hint="restore it from a backup, or remove the whole root and pull the images again",
        )
    if primary in _UNAVAILABLE:
        return UnavailableError(f"metadata {path}: {_UNAVAILABLE[primary]}: {reason}")
    return None


class Connection:
    """One connection, used by one thread at a time.

    Transactions are explicit: outside of one each statement stands alone.

    Args:
        path: The database file; made if it is missing, unless `readonly`.
        readonly: Refuse to write or to make the file.

    Raises:
        UnavailableError: The file cannot be opened, or its file system cannot hold a write-ahead log.
        DataLossError: The file is not a database.
        UnimplementedError: Python's SQLite library is too old.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            oldest = ".".join(map(str, _OLDEST_SQLITE))
            raise UnimplementedError(f"SQLite {sqlite3.sqlite_version} is too old: {oldest} is needed")
        self.path = path
        uri = f"file:{quote(str(path.absolute()))}?mode={'ro' if readonly else 'rwc'}"
        try:
            self._db = sqlite3.connect(
                uri,
                uri=True,
                timeout=BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=_CACHED_STATEMENTS,
            )
        except sqlite3.Error as exc:
            raise self._translated(exc) from exc
        try:
            for setting in _SETTINGS:
                self.execute(setting)
        except BaseException:
            self.close()
            raise

    def use_write_ahead_log(self) -> None:
        """Switch the file to a write-ahead log, so that readers and the writer do not wait for each other.

        Raises:
            UnavailableError: The file system cannot do it (no shared memory mappings).
        """
        row = self.fetch_one("PRAGMA journal_mode = WAL")
        if row != ("wal",):
            raise UnavailableError(
                f"metadata {self.path}: the file system offers no write-ahead log (journal mode {row})",
                hint="put the root on a local file system",
            )

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """Run one statement and return the number of rows it changed; -1 if it is not of a kind that does.

        Raises:
            sqlite3.IntegrityError: A constraint refused it.
            NixsnapError: As `translate` has it.
        """
        try:
            return self._db.execute(sql, parameters).rowcount
        except sqlite3.Error as exc:
            raise self._translated(exc) from exc

    def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Run one statement and return its first row, if any; errors as for `execute`."""
        try:
            row: Row | None = self._db.execute(sql, parameters).fetchone()
        except sqlite3.Error as exc:
            raise self._translated(exc) from exc
        return row

    def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one statement and return all its rows; errors as for `execute`."""
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as exc:
            raise self._translated(exc) from exc

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open; after some failures (disk full, I/O error) SQLite itself ends one."""
        return self._db.in_transaction

    def rollback(self) -> None:
        """End the transaction, if one is open, without its changes."""
        if self._db.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection; whatever transaction was open is rolled back."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _translated(self, exc: sqlite3.Error) -> Exception:
        return translate(self.path, exc) or exc
