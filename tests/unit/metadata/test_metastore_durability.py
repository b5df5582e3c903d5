"""What a crash leaves: every acknowledged write, and nothing half done."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys

import pytest

from nixsnap.metadata import Kind, Store

# Four threads write; each line is printed after its write was acknowledged.
WRITE_FOR_EVER = """
import itertools, os, sys, threading
from nixsnap.metadata import Closure, Kind, Store, Usage

store = Store.open(sys.argv[1])

def client(name):
    for number in itertools.count():
        key = f"{name}-{number}"
        made = store.write(lambda writer: writer.create(Kind.ACTIVE, key, labels={"x": key}))
        closure = Closure(snapshot_id=made.id, store_paths=[f"/nix/store/{key}-{i}" for i in range(100)])

        def commit(writer):
            writer.put_closure(closure)
            writer.commit_active(key, key + "!", Usage(inodes=number))

        store.write(commit)
        os.write(1, f"{key} {made.id}\\n".encode())

for name in "abcd":
    threading.Thread(target=client, args=(name,)).start()
"""


@pytest.mark.parametrize("acknowledged", [1, 50, 400])
def test_killed(path, acknowledged):
    """After kill -9 every acknowledged operation is there, whole, and ids go on where they were."""
    command = [sys.executable, "-c", WRITE_FOR_EVER, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(acknowledged)]
        process.kill()
        lines += process.stdout.read().splitlines()
    expected = {key: int(snapshot_id) for key, snapshot_id in map(str.split, lines)}
    assert len(expected) >= acknowledged

    with contextlib.closing(Store.open(path)) as store:
        with store.read() as reader:
            for key, snapshot_id in expected.items():
                found_id, info, _ = reader.get(key + "!")
                assert (found_id, info.kind) == (snapshot_id, Kind.COMMITTED)
            # Each client may have had one more commit under way: then its rows belong together, or are not there.
            ids = reader.ids()
            layers = reader.nix_layers(ids)
            assert layers == {reader.get(info.name)[0] for info in reader.walk(["kind==committed"])}
            assert all(len(closure.store_paths) == 100 for closure in reader.closures_of(layers).values())
        assert integrity(store) == [("ok",)]
        assert store.write(lambda writer: writer.create(Kind.ACTIVE, "next")).id > max(ids)


def test_what_is_in_the_files(path, tmp_path):
    """An acknowledged write is in the file and its log, and needs neither the process nor shared memory."""
    store = Store.open(path)
    for number in range(20):
        store.write(lambda writer, number=number: writer.create(Kind.ACTIVE, f"{number:02d}"))
        copy = tmp_path / f"copy-{number}"
        shutil.copyfile(path, copy)
        shutil.copyfile(f"{path}-wal", f"{copy}-wal")
        with contextlib.closing(Store.open(copy)) as crashed, crashed.read() as reader:
            assert [info.name for info in reader.walk()] == [f"{found:02d}" for found in range(number + 1)]
    store.close()


def integrity(store):
    with store.read() as reader:
        connection = reader._connection
        assert connection.fetch_all("PRAGMA foreign_key_check") == []
        return connection.fetch_all("PRAGMA integrity_check")
