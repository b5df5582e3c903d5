"""The write queue: batches, what a failure undoes, and the order of files, rows and answers."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nixsnap.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from nixsnap.metadata import Kind, Store, log_sync, write_queue
from nixsnap.metadata.connection import Connection
from nixsnap.metadata.schema import ensure_schema


class Recorder(Connection):
    """A connection that tells what it ran, and fails on cue."""

    def __init__(self, path, *, failures=None):
        self.log = []
        self.failures = failures or {}
        super().__init__(path)

    def execute(self, sql, parameters=()):
        self.log.append(sql.split()[0])
        if error := self.failures.get(sql):
            raise error
        return super().execute(sql, parameters)


@pytest.fixture
def recorder(path):
    """The connection of `recorded`."""
    Store.open(path).close()
    recorder = Recorder(path)
    recorder.log.clear()
    return recorder


@pytest.fixture
def recorded(path, recorder):
    """A store whose writer's connection is `recorder`."""
    store = Store(path, write_queue.WriteQueue(recorder))
    yield store
    recorder.failures.clear()
    store.close()


POOL = ThreadPoolExecutor(128)


def submit(store, operation):
    """Write from a thread of its own; returns when the operation waits for its turn, runs, or is over."""
    waiting = store._queue._waiting
    before = len(waiting)
    future = POOL.submit(store.write, operation)
    deadline = time.monotonic() + 0.2
    while len(waiting) == before and not future.done() and time.monotonic() < deadline:
        time.sleep(0)
    return future


class Batch:
    """Holds the turn until all operations of a test wait for it, so that they run as one batch."""

    def __init__(self, store):
        self._store = store

    def __enter__(self):
        started, self._release = threading.Event(), threading.Event()
        submit(self._store, lambda _: (started.set(), self._release.wait(10)))
        assert started.wait(10)
        return self

    def __exit__(self, *_):
        self._release.set()


def create(key, *, then=None):
    def operation(writer):
        made = writer.create(Kind.ACTIVE, key)
        if then:
            then(writer)
        return made.id

    return operation


def keys(store):
    with store.read() as reader:
        return [info.name for info in reader.walk()]


def fail(_):
    raise LookupError("on cue")


class TestBatches:
    def test_one_transaction_for_all_that_wait(self, recorded, recorder):
        """Operations that queue up while another runs share one transaction."""
        with Batch(recorded):
            futures = [submit(recorded, create(key)) for key in "abc"]
        assert [future.result(10) for future in futures] == [1, 2, 3]
        assert [word for word in recorder.log if word in {"BEGIN", "COMMIT"}] == ["BEGIN", "COMMIT"] * 2

    def test_results_in_order_and_visible_to_the_next(self, store):
        """Operations run in the order submitted and see what those before them did."""
        with Batch(store):
            submit(store, create("a"))
            seen = submit(store, lambda writer: writer.get("a")[0])
            taken = submit(store, create("a"))
        assert seen.result(10) == 1
        with pytest.raises(AlreadyExistsError):
            taken.result(10)

    def test_many_operations_are_cut_into_bounded_batches(self, recorded, recorder, monkeypatch):
        """A flood of operations does not make the first wait for the last."""
        monkeypatch.setattr(write_queue, "_MAX_BATCH", 10)
        with Batch(recorded):
            futures = [submit(recorded, create(f"{number}")) for number in range(35)]
        assert [future.result(10) for future in futures] == list(range(1, 36))
        assert recorder.log.count("COMMIT") == 5

    def test_failure_undoes_one_operation_alone(self, store):
        """An operation that raises takes its own changes back, and its neighbours' stay."""
        with Batch(store):
            futures = [
                submit(store, create("a")),
                submit(store, create("b", then=fail)),
                submit(store, create("c")),
            ]
        with pytest.raises(LookupError, match="on cue"):
            futures[1].result(10)
        assert [futures[0].result(10), futures[2].result(10)] == [1, 2]
        assert keys(store) == ["a", "c"]

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_any_exception_reaches_the_caller(self, store, error):
        """Not even an exception that ends programs ends the writer's thread."""

        def operation(_):
            raise error

        assert isinstance(submit(store, operation).exception(10), error)
        assert store.write(create("a")) == 1

    def test_four_threads(self, store):
        """Threads that write and read at once get their own results, and every write is there."""

        def client(name):
            for number in range(50):
                made = store.write(create(f"{name}-{number}"))
                with store.read() as reader:
                    assert reader.get(f"{name}-{number}")[0] == made

        threads = [threading.Thread(daemon=True, target=client, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert keys(store) == sorted(f"{name}-{number}" for name in "abcd" for number in range(50))


class Disk:
    """Stands for `os.fdatasync`: tells what was synced, waits until it is let go, and fails on cue."""

    def __init__(self, log):
        self._log = log
        self.ready = threading.Event()
        self.ready.set()
        self.began = threading.Event()
        self.error = None

    def __call__(self, fd):
        self._log.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        self.began.set()
        assert self.ready.wait(10)
        if self.error:
            raise self.error


@pytest.fixture
def disk(recorder, monkeypatch):
    """What syncs go to."""
    disk = Disk(recorder.log)
    monkeypatch.setattr(log_sync.os, "fdatasync", disk)
    return disk


def syncs(recorder):
    return sum(word.startswith("sync") for word in recorder.log)


class TestDurability:
    @pytest.mark.usefixtures("disk")
    def test_answers_come_after_commit_and_sync(self, recorded, recorder):
        """When a write returns, its transaction has been committed and after that the log synced."""
        assert recorded.write(create("a")) == 1
        assert recorder.log[-2:] == ["COMMIT", "sync metadata.sqlite-wal"]
        assert recorder.fetch_one("PRAGMA synchronous") == (1,)
        assert recorder.fetch_one("PRAGMA journal_mode") == ("wal",)

    @pytest.mark.usefixtures("disk")
    def test_what_need_not_be_durable_is_not_synced(self, recorded, recorder):
        """It is by the next write that must be."""
        recorded.write(create("a"), durable=False)
        assert syncs(recorder) == 0
        recorded.write(create("b"))
        assert syncs(recorder) == 1

    def test_a_sync_holds_up_neither_readers_nor_transactions(self, recorded, recorder, disk):
        """All that is committed while the log is being synced is synced by the next one."""
        disk.ready.clear()
        futures = [submit(recorded, create("a"))]
        assert disk.began.wait(10)
        futures += [submit(recorded, create(key)) for key in "bcd"]
        deadline = time.monotonic() + 10
        while keys(recorded) != ["a", "b", "c", "d"] and time.monotonic() < deadline:
            time.sleep(0.001)
        assert keys(recorded) == ["a", "b", "c", "d"]
        assert not any(future.done() for future in futures)
        disk.ready.set()
        assert [future.result(10) for future in futures] == [1, 2, 3, 4]
        assert syncs(recorder) == 2

    @pytest.mark.usefixtures("disk")
    def test_failed_operation_syncs_nothing(self, recorded, recorder):
        """There is nothing of it to be synced."""
        with pytest.raises(LookupError):
            recorded.write(create("a", then=fail))
        assert syncs(recorder) == 0

    def test_sync_that_fails(self, recorded, recorder, disk):
        """No write succeeds after that: what the kernel takes for clean it will never write. Nothing is undone."""
        undone = []
        disk.error = OSError(5, "Input/output error")
        with pytest.raises(
            UnavailableError, match=r"metadata\.sqlite could not be synced: Input/output error"
        ):
            recorded.write(create("a", then=lambda writer: writer.on_rollback(lambda: undone.append("a"))))
        disk.error = None
        for durable in (True, False):
            with pytest.raises(UnavailableError, match="restart nixsnap"):
                recorded.write(create("b"), durable=durable)
        assert (keys(recorded), undone, syncs(recorder)) == (["a"], [], 1)
        with pytest.raises(UnavailableError, match="could not be synced"):
            recorded.close()

    @pytest.mark.usefixtures("disk")
    def test_the_end_syncs_what_was_not(self, recorded, recorder):
        """A store that is closed is on disk."""
        recorded.write(create("a"), durable=False)
        recorded.close()
        assert syncs(recorder) == 1

    def test_no_log(self, path):
        """A database whose log cannot be synced is not written to."""
        connection = Connection(path)
        ensure_schema(connection)
        try:
            with pytest.raises(
                UnavailableError, match=r"the log of metadata .* cannot be synced: No such file"
            ):
                write_queue.WriteQueue(connection)
        finally:
            connection.close()


class TestCompensation:
    def test_own_failure(self, store):
        """A failed operation's compensations run at once, last first; a neighbour's do not."""
        undone = []

        def undoable(name):
            return lambda writer: [
                writer.on_rollback(lambda step=step: undone.append(f"{name}{step}")) for step in (1, 2)
            ]

        with Batch(store):
            kept = submit(store, create("a", then=undoable("a")))
            submit(store, create("b", then=lambda writer: (undoable("b")(writer), fail(writer))))
            seen = submit(store, lambda _: list(undone))
        assert kept.result(10) == 1
        assert seen.result(10) == undone == ["b2", "b1"]

    def test_success_forgets_them(self, recorded, recorder):
        """What an operation registered is not run when a later one, or a later batch, fails."""
        undone = []
        recorded.write(create("a", then=lambda writer: writer.on_rollback(lambda: undone.append("a"))))
        with pytest.raises(LookupError):
            recorded.write(fail)
        recorder.failures["COMMIT"] = UnavailableError("commit")
        with pytest.raises(UnavailableError):
            recorded.write(create("b"))
        assert undone == []

    def test_commit_failure(self, recorded, recorder):
        """When COMMIT fails every operation is undone and gets the error, with its cause."""
        undone = []
        cause = ResourceExhaustedError("metadata x: no space left", hint="make room")
        recorder.failures["COMMIT"] = cause
        with Batch(recorded):
            futures = [
                submit(
                    recorded,
                    create(key, then=lambda writer, key=key: writer.on_rollback(lambda: undone.append(key))),
                )
                for key in "ab"
            ]
        for future in futures:
            error = future.exception(10)
            assert isinstance(error, ResourceExhaustedError)
            assert (str(error), error.__cause__) == ("metadata x: no space left (make room)", cause)
        assert futures[0].exception() is not futures[1].exception()
        assert undone == ["b", "a"]
        recorder.failures.clear()
        assert (keys(recorded), recorded.write(create("a"))) == ([], 1)

    def test_failing_compensation_is_logged(self, store, caplog):
        """A compensation that fails hides neither the operation's error nor the other compensations."""
        undone = []

        def operation(writer):
            writer.on_rollback(lambda: undone.append("first"))
            writer.on_rollback(lambda: fail(writer))
            raise NotFoundError("the reason")

        with caplog.at_level(logging.ERROR), pytest.raises(NotFoundError, match="the reason"):
            store.write(operation)
        assert undone == ["first"]
        assert "undoing the files" in caplog.text


class TestFailures:
    def test_full_inside_an_operation(self, store):
        """When the file cannot grow the operation fails with ResourceExhausted and the store goes on."""
        store.write(create("a"))
        pages = store.write(lambda writer: writer._connection.fetch_one("PRAGMA page_count")[0])
        store.write(lambda writer: writer._connection.fetch_one(f"PRAGMA max_page_count = {pages}"))
        undone = []

        def operation(writer):
            writer.on_rollback(lambda: undone.append("b"))
            writer.create(Kind.ACTIVE, "b", labels={"x": "y" * 100_000})

        with pytest.raises(ResourceExhaustedError, match=r"metadata\.sqlite: no space left.*SQLITE_FULL"):
            store.write(operation)
        assert (keys(store), undone) == (["a"], ["b"])
        store.write(lambda writer: writer._connection.fetch_one("PRAGMA max_page_count = 1000"))
        assert store.write(create("b")) == 2

    def test_transaction_given_up_by_sqlite(self, store):
        """When SQLite itself ends the transaction, every operation of the batch fails with the reason."""

        def given_up(writer):
            writer._connection.rollback()
            raise ResourceExhaustedError("disk full")

        with Batch(store):
            futures = [submit(store, create("a")), submit(store, given_up), submit(store, create("b"))]
        assert [type(future.exception(10)) for future in futures] == [ResourceExhaustedError] * 3
        assert keys(store) == []

    def test_begin_failure(self, recorded, recorder):
        """When no transaction can be begun nothing runs, and the next batch tries again."""
        recorder.failures["BEGIN IMMEDIATE"] = UnavailableError("locked")
        ran = []
        with pytest.raises(UnavailableError, match="locked"):
            recorded.write(ran.append)
        assert ran == []
        recorder.failures.clear()
        assert recorded.write(create("a")) == 1

    def test_failed_rollback(self, recorded, recorder, caplog):
        """Even when the rollback fails too, the first error is told and the thread lives."""
        recorder.failures["COMMIT"] = UnavailableError("commit")
        recorder.failures["ROLLBACK"] = DataLossError("rollback")
        with caplog.at_level(logging.ERROR), pytest.raises(UnavailableError, match="commit"):
            recorded.write(create("a"))
        assert "rollback failed" in caplog.text
        recorder.failures.clear()
        recorder.rollback()
        assert recorded.write(create("a")) == 1

    def test_failed_checkpoint_harms_nobody(self, recorded, monkeypatch, caplog):
        """The log holds all that a checkpoint could not copy."""
        monkeypatch.setattr(write_queue, "_CHECKPOINT_COMMITS", 1)

        def fetch_all(self, sql, parameters=()):
            if "checkpoint" in sql:
                raise UnavailableError("no checkpoint")
            return Connection.fetch_all(self, sql, parameters)

        monkeypatch.setattr(Recorder, "fetch_all", fetch_all)
        assert [recorded.write(create(key)) for key in "ab"] == [1, 2]
        assert "no checkpoint" in caplog.text


class TestCheckpoints:
    def test_log_stays_short(self, store, path, monkeypatch):
        """However much is written, the log is folded into the file now and then and begun anew."""
        monkeypatch.setattr(write_queue, "_CHECKPOINT_COMMITS", 20)
        log = path.with_name(path.name + "-wal")
        sizes = set()
        for number in range(400):
            store.write(create(f"{number}"))
            sizes.add(log.stat().st_size)
        assert max(sizes) < 40 * 6 * 4120  # two rounds of 20 commits, 6 frames each at most


class TestReaders:
    def test_not_blocked_by_a_long_write(self, store):
        """While a transaction is open readers answer, with what was there before it."""
        store.write(create("a"))
        wrote, release = threading.Event(), threading.Event()
        future = submit(store, create("b", then=lambda _: (wrote.set(), release.wait(10))))
        assert wrote.wait(10)
        assert keys(store) == ["a"]
        assert not future.done()
        release.set()
        future.result(10)
        assert keys(store) == ["a", "b"]

    def test_see_one_moment(self, store):
        """All that one reader asks is of the same moment."""
        store.write(create("a"))
        with store.read() as reader:
            reader.get("a")
            store.write(lambda writer: writer.remove("a"))
            assert reader.get("a")[0] == 1
        assert keys(store) == []

    def test_cannot_write(self, store):
        """A reader's connection refuses to change anything."""
        with store.read() as reader, pytest.raises(UnavailableError, match="cannot be written"):
            reader._connection.execute("DELETE FROM snapshot")

    def test_nested(self, store):
        """A thread may read while it reads."""
        store.write(create("a"))
        with store.read() as outer, store.read() as inner:
            assert outer.get("a") == inner.get("a")

    def test_connections_are_reused_and_bounded(self, store):
        """Idle connections are kept for the next reader, a few of them."""
        with store.read() as first:
            connection = first._connection
        with store.read() as second:
            assert second._connection is connection
        blocks = [store.read() for _ in range(10)]
        for block in blocks:
            block.__enter__()
        for block in blocks:
            block.__exit__(None, None, None)
        assert len(store._idle) == 4

    def test_failure_in_the_block(self, store):
        """An exception in the block ends the reader's transaction and passes."""
        with pytest.raises(LookupError), store.read():
            raise LookupError
        store.write(create("a"))
        assert keys(store) == ["a"]


class TestClosing:
    def test_finishes_what_is_queued(self, path):
        """Closing answers every operation that was accepted."""
        store = Store.open(path)
        with Batch(store):
            futures = [submit(store, create(f"{number}")) for number in range(100)]
        store.close()
        assert [future.result(10) for future in futures] == list(range(1, 101))

    def test_refuses_afterwards(self, path):
        """A closed store refuses reads and writes, and may be closed again."""
        store = Store.open(path)
        store.close()
        store.close()
        with pytest.raises(UnavailableError, match="is closed"):
            store.write(create("a"))
        with pytest.raises(UnavailableError, match="is closed"), store.read():
            pass

    def test_leaves_one_file(self, path):
        """After a clean close all is in the database file; nothing lies beside it."""
        store = Store.open(path)
        store.write(create("a"))
        assert keys(store) == ["a"]
        store.close()
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    def test_readonly_store_refuses_writes(self, path):
        """A store opened to be read refuses writes at once."""
        Store.open(path).close()
        store = Store.open(path, readonly=True)
        with pytest.raises(FailedPreconditionError, match="read only"):
            store.write(create("a"))
        store.close()


def test_schema_of_recorder_is_ours(path):
    """The recording connection is an ordinary one (guards the tests above)."""
    recorder = Recorder(path)
    ensure_schema(recorder)
    assert recorder.log[0] == "PRAGMA"
    recorder.close()
