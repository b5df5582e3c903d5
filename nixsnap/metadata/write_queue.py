"""Group commit: all operations that wait at a time run in one transaction, on the thread of one of them.

An operation is answered only after COMMIT and, unless it need not be durable, after the log is on disk. Syncing the log
holds up no other transaction, and one sync serves all that were committed before it. There is no thread for any of this
alone: waking one up, and being woken by it, takes as long as the transaction's own work. Whoever has the turn works for
all that wait; the others find their answers when they get it.
"""

from __future__ import annotations

import collections
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from nixsnap.errors import NixsnapError, UnavailableError
from nixsnap.metadata.compensations import Compensations
from nixsnap.metadata.connection import Connection
from nixsnap.metadata.log_sync import LogSync
from nixsnap.metadata.writer import Writer

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)

_MAX_BATCH: Final = 256
"""Operations in one transaction: bounds how long the first of them waits for the last."""

_CHECKPOINT_COMMITS: Final = 200
"""Commits between checkpoints: a small change writes some five pages, so the log stays near 4 MiB."""


class _Pending:
    """An operation, and what came of it."""

    __slots__ = ("commit", "error", "operation", "result", "settled")

    def __init__(self, operation: Callable[[Writer], Any]) -> None:
        self.operation = operation
        self.result: Any = None
        self.error: BaseException | None = None
        self.settled = False
        self.commit = 0  # the number of the transaction that it was part of

    def settle(self, result: Any, error: BaseException | None) -> None:
        self.result, self.error = result, error
        self.settled = True


class WriteQueue:
    """The only writer of the database in this process.

    Args:
        connection: From now on used, and in the end closed, by the queue alone.
    """

    def __init__(self, connection: Connection) -> None:
        self._path: Path = connection.path
        self._connection = connection
        self._log = LogSync(connection.path)
        self._compensations = Compensations()
        self._writer = Writer(connection, self._compensations)
        self._waiting: collections.deque[_Pending] = collections.deque()  # its append and popleft are atomic
        self._turn = threading.Lock()  # whoever has it uses the connection
        self._closed = False
        self._commits = 0

    def write(self, operation: Callable[[Writer], T], *, durable: bool) -> T:
        """Run an operation; the contract is that of `Store.write`."""
        pending = _Pending(operation)
        self._waiting.append(pending)
        with self._turn:
            while not pending.settled:
                self._run_next_batch()
        if pending.error is not None:
            raise pending.error
        if durable:
            self._log.sync(pending.commit)
        result: T = pending.result
        return result

    def close(self) -> None:
        """Finish what waits and close the connection; whatever comes later is refused."""
        with self._turn:
            if self._closed:
                return
            while self._waiting:
                self._run_next_batch()
            self._closed = True
            try:
                self._log.close()
            finally:
                self._connection.close()

    def _run_next_batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_BATCH))]
        try:
            self._check()
        except UnavailableError as refusal:
            for pending in batch:
                pending.settle(None, _own_copy(refusal))
            return
        self._run_batch(batch)
        if self._commits >= _CHECKPOINT_COMMITS:
            self._checkpoint()

    def _check(self) -> None:
        if self._closed:
            raise UnavailableError(f"metadata {self._path} is closed")
        self._log.check()

    def _run_batch(self, batch: list[_Pending]) -> None:
        """Run operations in one transaction and settle them."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if len(batch) == 1:  # what it does needs no undoing apart from the transaction
                outcomes: list[tuple[Any, BaseException | None]] = [(batch[0].operation(self._writer), None)]
            else:
                outcomes = [self._run_operation(pending.operation) for pending in batch]
            self._connection.execute("COMMIT")
        except BaseException as exc:  # noqa: BLE001 - it is raised by those who wait
            self._abandon()
            for pending in batch:
                pending.settle(None, _own_copy(exc))
            return
        self._compensations.clear()
        self._commits += 1
        number = self._log.committed()
        for pending, (result, error) in zip(batch, outcomes, strict=True):
            pending.commit = number
            pending.settle(result, error)

    def _run_operation(self, operation: Callable[[Writer], Any]) -> tuple[Any, BaseException | None]:
        """Run one operation, undoing its changes alone if it raises.

        Raises:
            BaseException: What it raised, if SQLite gave up the whole transaction over it (disk full, I/O error).
        """
        mark = self._compensations.mark()
        self._connection.execute("SAVEPOINT operation")
        try:
            result = operation(self._writer)
        except BaseException as exc:
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO operation")
            self._connection.execute("RELEASE operation")
            self._compensations.run(mark)
            return None, exc
        self._connection.execute("RELEASE operation")
        return result, None

    def _abandon(self) -> None:
        """Undo the whole batch."""
        try:
            self._connection.rollback()
        except Exception:  # noqa: BLE001 - the error that led here is the one to tell
            _log.exception("metadata %s: rollback failed", self._path)
        self._compensations.run()

    def _checkpoint(self) -> None:
        """Copy the log into the database file."""
        self._commits = 0
        try:
            self._connection.fetch_all("PRAGMA wal_checkpoint(PASSIVE)")
        except (NixsnapError, sqlite3.Error) as exc:  # nothing is lost: the log holds it all
            _log.warning("metadata %s: checkpoint failed: %s", self._path, exc)


def _own_copy(exc: BaseException) -> BaseException:
    """The error for one of several waiters, each of which will add its traceback to it."""
    if not isinstance(exc, NixsnapError):
        return exc
    own = type(exc)(exc.message, hint=exc.hint)
    own.__cause__ = exc
    return own
