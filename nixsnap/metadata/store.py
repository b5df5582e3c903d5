"""The metadata store: opening it, reading it from any thread, writing it through one queue."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Self, TypeVar

from nixsnap.errors import FailedPreconditionError, NotFoundError, UnavailableError
from nixsnap.metadata.connection import Connection
from nixsnap.metadata.filters import parse_filters
from nixsnap.metadata.log_sync import sync_directory
from nixsnap.metadata.reader import Reader
from nixsnap.metadata.records import Info
from nixsnap.metadata.schema import SCHEMA_VERSION, ensure_schema, read_version
from nixsnap.metadata.write_queue import WriteQueue
from nixsnap.metadata.writer import Writer

T = TypeVar("T")

_MAX_IDLE_READERS: Final = 4


class Store:
    """The record of which snapshots exist, in one SQLite file; made by `open`.

    Any thread may use it. It does not survive a fork.
    """

    def __init__(self, path: Path, queue: WriteQueue | None) -> None:
        self._path = path
        self._queue = queue
        self._idle: list[Connection] = []  # its append and pop are atomic
        self._closed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, readonly: bool = False) -> Self:
        """Open the store in a file, which is made (mode 0600) if it is missing.

        Args:
            path: The database file; SQLite keeps its `-wal` and `-shm` files beside it.
            readonly: Only read; making and upgrading the file is left to the daemon.

        Raises:
            NotFoundError: `readonly`, and the file is missing.
            FailedPreconditionError: The file is another program's or a newer nixsnap's, or `readonly` and an older's.
            DataLossError: The file is damaged or no database.
            UnavailableError: It cannot be read or written.
        """
        file = Path(path).absolute()
        if readonly:
            _check_readable(file)
            return cls(file, None)
        return cls(file, WriteQueue(_open_writable(file)))

    def close(self) -> None:
        """Finish what is queued and close the file; reading and writing fail from now on.

        If no other process has it open, all is in the one database file afterwards.
        """
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        if self._queue:  # the last one, for SQLite folds in the log when its last, writable connection closes
            self._queue.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        """A block that reads one moment of the store, which no writer delays or disturbs.

        It may see what has been committed and not been synced yet, so that a power cut could still take it back. Fit
        for an event loop's thread, if the block is short; connections come from a pool.

        Raises:
            UnavailableError: The store is closed, or the file cannot be read.
            DataLossError: The file is damaged.
        """
        connection = self._acquire()
        try:
            connection.execute("BEGIN")
            yield Reader(connection)
        finally:
            self._release(connection)

    def walk_blocks(self, filters: Iterable[str] = (), *, block_size: int = 100) -> Iterator[list[Info]]:
        """The snapshots that any of the filters lets pass (all, without a filter), in blocks for a stream.

        The set of snapshots and their order, bytewise by key, are those of the first moment. Each block reads its
        snapshots as they are at its own moment, without those that have gone since. No transaction is open between
        blocks, so that a client may take its time: an open one would keep the write-ahead log growing.

        Raises:
            InvalidArgumentError: A filter is malformed; raised by this call, not by the first block.
        """
        return self._blocks(parse_filters(filters).matches, block_size)

    def _blocks(self, matches: Callable[[Info], bool], block_size: int) -> Iterator[list[Info]]:
        with self.read() as reader:
            ids = reader.ids_in_key_order()
        for start in range(0, len(ids), block_size):
            with self.read() as reader:
                block = list(filter(matches, reader.infos(ids[start : start + block_size])))
            if block:
                yield block

    def write(self, operation: Callable[[Writer], T], *, durable: bool = True) -> T:
        """Run an operation that changes the store, and return what it returns.

        All operations that wait at a time run in one transaction, in the order in which they came; each sees the
        changes of those before it. One that raises undoes its own changes alone. This returns once the transaction is
        on disk. If it cannot be committed, every operation of it fails and is undone; if it cannot be synced after
        that, all fail that wait for it and every later one, and what they did is not undone: it may be on disk.

        Args:
            operation: Called with a `Writer` that is of no use afterwards, perhaps on the thread of another caller.
                Everyone's writes wait for it, so it should take microseconds, and at most a rename.
            durable: Do not return before it is on disk. Otherwise a power cut, though no crash, may take the changes
                back: with all that came later, or not at all.

        Raises:
            UnavailableError: The store is closed, or the file cannot be written or synced.
            FailedPreconditionError: The store was opened `readonly`.
            ResourceExhaustedError: The disk is full.
            DataLossError: The file is damaged.
        """
        if self._queue is None:
            raise FailedPreconditionError(f"metadata {self._path} was opened to be read only")
        return self._queue.write(operation, durable=durable)

    def _acquire(self) -> Connection:
        if self._closed:
            raise UnavailableError(f"metadata {self._path} is closed")
        try:
            return self._idle.pop()
        except IndexError:
            return Connection(self._path, readonly=True)

    def _release(self, connection: Connection) -> None:
        try:
            connection.rollback()
        except BaseException:
            connection.close()
            raise
        if self._closed or len(self._idle) >= _MAX_IDLE_READERS:
            connection.close()
        else:
            self._idle.append(connection)


def _open_writable(file: Path) -> Connection:
    _make_file(file)
    connection = Connection(file)
    try:
        read_version(connection)  # a foreign file is refused before its journal mode is touched
        connection.use_write_ahead_log()
        ensure_schema(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_file(file: Path) -> None:
    """Make the file for its owner alone, durably; SQLite gives the files beside it the same mode."""
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_directory(file.parent)
    except FileExistsError:
        pass
    except OSError as exc:
        raise UnavailableError(f"metadata {file} cannot be made: {exc.strerror}") from exc


def _check_readable(file: Path) -> None:
    if not file.exists():
        raise NotFoundError(f"metadata {file} does not exist")
    connection = Connection(file, readonly=True)
    try:
        version = read_version(connection)
    finally:
        connection.close()
    if version != SCHEMA_VERSION:
        raise FailedPreconditionError(
            f"metadata {file} has schema version {version}, not {SCHEMA_VERSION}",
            hint="start `nixsnap serve` once, which brings it up to date",
        )
