"""The database file: making and opening it, versions, damage, other processes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest

from nixsnap.errors import (
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from nixsnap.metadata import Kind, Store, connection, schema
from nixsnap.metadata.connection import Connection

PAGE = 4096


def create(store, key="a"):
    return store.write(lambda writer: writer.create(Kind.ACTIVE, key))


def keys(store):
    with store.read() as reader:
        return [info.name for info in reader.walk()]


def filled(path, count=1):
    """Make a store of some snapshots and close it."""
    with contextlib.closing(Store.open(path)) as store:
        store.write(lambda writer: [writer.create(Kind.ACTIVE, f"{number:05d}") for number in range(count)])


def run_sql(path, *statements):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


class TestOpening:
    def test_file_is_the_owners_alone(self, path):
        """The file and those beside it cannot be read by others, whatever the umask."""
        previous = os.umask(0)
        try:
            store = Store.open(path)
            create(store)
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
            store.close()
        finally:
            os.umask(previous)
        assert modes == dict.fromkeys([path.name, f"{path.name}-wal", f"{path.name}-shm"], 0o600)

    @pytest.mark.parametrize("name", ["a b", "a?mode=ro", "a%20#x", "ü"])
    def test_odd_file_names(self, tmp_path, name):
        """A path is a path, not a URI."""
        filled(tmp_path / name)
        assert [entry.name for entry in tmp_path.iterdir()] == [name]

    def test_reopening(self, path):
        """What was written is there after reopening."""
        filled(path, 3)
        with contextlib.closing(Store.open(path)) as store:
            assert keys(store) == ["00000", "00001", "00002"]

    def test_empty_file(self, path):
        """An empty file, left by a crash while it was made, is as good as none."""
        path.touch()
        filled(path)

    def test_missing_directory(self, tmp_path):
        """The error names the file when its directory does not exist."""
        with pytest.raises(UnavailableError, match=r"nowhere/m\.sqlite cannot be made: No such file"):
            Store.open(tmp_path / "nowhere" / "m.sqlite")

    def test_directory_in_the_files_place(self, path):
        """A directory where the file should be is no file."""
        path.mkdir()
        with pytest.raises(UnavailableError, match=r"metadata\.sqlite: it cannot be opened"):
            Store.open(path)

    def test_sqlite_too_old(self, path, monkeypatch):
        """A library without STRICT tables is named, before SQL syntax errors puzzle anyone."""
        monkeypatch.setattr(connection.sqlite3, "sqlite_version_info", (3, 34, 1))
        with pytest.raises(UnimplementedError, match=r"3\.37\.0 is needed"):
            Store.open(path)

    def test_no_write_ahead_log(self, path, monkeypatch):
        """A file system that cannot share memory between processes is refused with the way out."""
        monkeypatch.setattr(Connection, "fetch_one", answer_journal_mode(Connection.fetch_one))
        with pytest.raises(UnavailableError, match=r"no write-ahead log.*local file system"):
            Store.open(path)


def answer_journal_mode(fetch_one):
    def fake(self, sql, parameters=()):
        return ("delete",) if "journal_mode" in sql else fetch_one(self, sql, parameters)

    return fake


class TestReadonly:
    def test_reads_beside_the_daemon(self, path):
        """Another process may look while the daemon works."""
        with contextlib.closing(Store.open(path)) as store:
            create(store, "a")
            with contextlib.closing(Store.open(path, readonly=True)) as other:
                assert keys(other) == ["a"]
                create(store, "b")
                assert keys(other) == ["a", "b"]

    def test_reads_what_a_stopped_daemon_left(self, path):
        """It needs no daemon either."""
        filled(path, 2)
        with contextlib.closing(Store.open(path, readonly=True)) as store:
            assert keys(store) == ["00000", "00001"]

    def test_makes_nothing(self, path):
        """A missing file is not made."""
        with pytest.raises(NotFoundError, match=r"metadata\.sqlite does not exist"):
            Store.open(path, readonly=True)
        assert not path.exists()

    def test_upgrades_nothing(self, path):
        """A file that has no schema yet is left to the daemon."""
        path.touch()
        with pytest.raises(FailedPreconditionError, match=r"version 0, not 1.*start `nixsnap serve`"):
            Store.open(path, readonly=True)


class TestVersions:
    @pytest.mark.parametrize("readonly", [False, True])
    def test_newer(self, path, readonly):
        """A newer nixsnap's file is refused, naming file, both versions and the way out; it is not touched."""
        filled(path)
        run_sql(path, "PRAGMA user_version = 7")
        before = path.read_bytes()
        with pytest.raises(FailedPreconditionError) as raised:
            Store.open(path, readonly=readonly)
        assert str(path) in raised.value.message
        assert "has schema version 7, and this nixsnap knows up to version 1" in raised.value.message
        assert "newer" in raised.value.hint
        assert path.read_bytes() == before

    @pytest.mark.parametrize("statement", ["CREATE TABLE other (x)", "PRAGMA user_version = 1"])
    def test_foreign(self, path, statement):
        """Another program's database is refused and not touched, not even its journal mode."""
        run_sql(path, statement)
        before = path.read_bytes()
        with pytest.raises(FailedPreconditionError, match="database of another program"):
            Store.open(path)
        assert path.read_bytes() == before

    def test_migration(self, path):
        """Numbered steps lead from an old version to the newest, and are not run again."""
        filled(path)
        steps = {
            1: "ALTER TABLE snapshot ADD COLUMN x TEXT;\nUPDATE snapshot SET x = ';';",
            2: "ALTER TABLE closure ADD y TEXT;",
        }
        for _ in range(2):
            database = Connection(path)
            schema.ensure_schema(database, version=3, migrations=steps)
            assert schema.read_version(database, newest=3) == 3
            assert database.fetch_all("SELECT key, x FROM snapshot") == [("00000", ";")]
            database.close()

    def test_failed_migration(self, path):
        """A step that fails leaves the file as it was, version and all."""
        filled(path)
        database = Connection(path)
        with pytest.raises(sqlite3.OperationalError, match="nothing"):
            schema.ensure_schema(
                database, version=2, migrations={1: "DELETE FROM snapshot;\nDROP TABLE nothing;"}
            )
        database.close()
        with contextlib.closing(Store.open(path)) as store:
            assert keys(store) == ["00000"]

    def test_schema_refuses_what_the_code_never_writes(self, path):
        """The schema itself keeps kinds known, keys present and parents real."""
        with contextlib.closing(Store.open(path)) as store:
            for values in ("1, 'a', 4, NULL", "1, '', 1, NULL", "1, 'a', 1, 9", "1, 'a', 'x', NULL"):
                sql = f"INSERT INTO snapshot (id, key, kind, parent_id, created_ns, updated_ns) VALUES ({values}, 0, 0)"
                with pytest.raises(sqlite3.IntegrityError):
                    store.write(lambda writer, sql=sql: writer._connection.execute(sql))


class TestDamage:
    @pytest.mark.parametrize("readonly", [False, True])
    @pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
    def test_no_database(self, path, content, readonly):
        """A file that is no database is data loss, and says which file and what to do."""
        path.write_bytes(content)
        with pytest.raises(DataLossError, match=r"metadata\.sqlite.*damaged or no database.*backup"):
            Store.open(path, readonly=readonly)
        assert path.read_bytes() == content

    @pytest.mark.parametrize("page", range(1, 8))
    def test_overwritten_page(self, path, page):
        """A damaged page is reported when it is met, and never read as something else."""
        filled(path, 300)
        assert path.stat().st_size > 8 * PAGE
        with path.open("r+b") as file:
            file.seek(page * PAGE)
            file.write(b"\xa5" * PAGE)
        with pytest.raises(DataLossError, match="damaged"):
            use_everything(path)

    def test_cut_short(self, path):
        """A file that lost its end is reported."""
        filled(path, 300)
        os.truncate(path, 3 * PAGE)
        with pytest.raises(DataLossError, match="damaged"), contextlib.closing(Store.open(path)) as store:
            keys(store)

    def test_torn_log(self, path):
        """A log that a crash cut short in the middle of a commit is read up to the last whole commit."""
        store = Store.open(path)
        create(store, "a")
        log = path.with_name(path.name + "-wal")
        whole = log.stat().st_size
        create(store, "b")
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.with_name("copy-wal").write_bytes(log.read_bytes()[: whole + PAGE // 2])
        store.close()
        with contextlib.closing(Store.open(copy)) as crashed:
            assert keys(crashed) == ["a"]


def use_everything(path):
    """Read and write every page of a store that `filled` made with 300 snapshots."""
    with contextlib.closing(Store.open(path)) as store:
        everything = [f"{number:05d}" for number in range(300)]
        assert keys(store) == everything
        create(store, "new")
        store.write(lambda writer: [writer.remove(key) for key in everything])
        store.write(lambda writer: writer._connection.fetch_all("SELECT * FROM closure"))


HOLD_LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


class TestTwoProcesses:
    @pytest.fixture
    def locker(self, path):
        """Another process that holds the write lock until it is told to go."""
        Store.open(path).close()
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD_LOCK, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "locked\n"
        with process:
            yield process
            process.stdin.close()

    def test_write_waits(self, path, locker):
        """A write waits for another process's transaction to end; reads do not."""
        with contextlib.closing(Store.open(path)) as store:
            threading.Timer(0.2, locker.stdin.close).start()
            assert keys(store) == []
            assert store.write(lambda writer: writer.create(Kind.ACTIVE, "a").id) == 1

    def test_write_gives_up(self, path, locker, monkeypatch):
        """A lock that is not let go of is reported as unavailable, naming the file."""
        monkeypatch.setattr(connection, "BUSY_TIMEOUT_SECONDS", 0.1)
        with contextlib.closing(Store.open(path)) as store:
            before = time.monotonic()
            with pytest.raises(UnavailableError, match=r"metadata\.sqlite: another process holds its lock"):
                create(store)
            assert time.monotonic() - before < 4
            locker.stdin.close()
            locker.wait()
            assert create(store).id == 1

    def test_making_the_file_at_once(self, path):
        """Processes that make the same file at the same time end up with one schema."""
        script = "import sys; from nixsnap.metadata import Store; Store.open(sys.argv[1]).close()"
        processes = [subprocess.Popen([sys.executable, "-c", script, path]) for _ in range(4)]
        assert [process.wait() for process in processes] == [0] * 4
        filled(path)
