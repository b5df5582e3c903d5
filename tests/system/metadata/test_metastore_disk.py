"""The metadata store on a disk that is full or cannot be written."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from nixsnap.errors import ResourceExhaustedError, UnavailableError
from nixsnap.metadata import Closure, Kind, Store

MIB = 1 << 20


@pytest.fixture
def disk(directory: Path):
    """A disk of two mebibytes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.fixture
def store(disk):
    """A store on the small disk."""
    store = Store.open(disk / "metadata.sqlite")
    yield store
    store.close()


def fill(disk, *, spare_bytes=0):
    """Write a file until no more fits than is to be spared."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    os.truncate(filler, filler.stat().st_size - spare_bytes)


def keys(store):
    with store.read() as reader:
        return [info.name for info in reader.walk()]


def make_until_full(store, disk):
    """Create snapshots with their directories, as the snapshotter does, until it fails; return the error."""
    for number in range(10_000):

        def create(writer, number=number):
            made = writer.create(Kind.ACTIVE, f"{number:05d}", labels={"x": "y" * 1000})
            directory = disk / f"{made.id}"
            directory.symlink_to(".")  # on tmpfs this needs no page, so that it still succeeds on a full disk
            writer.on_rollback(directory.unlink)

        try:
            store.write(create)
        except ResourceExhaustedError as error:
            return error
    pytest.fail("the disk never filled up")


def directories(disk):
    return {int(entry.name) for entry in disk.iterdir() if entry.is_symlink()}


def test_full(disk, store):
    """On a full disk writes fail as such and leave nothing; reads go on; with room again, so do writes."""
    store.write(lambda writer: writer.create(Kind.ACTIVE, "first"))
    fill(disk, spare_bytes=MIB // 2)
    error = make_until_full(store, disk)
    assert str(disk / "metadata.sqlite") in error.message
    before = keys(store)
    for _ in range(3):
        with pytest.raises(ResourceExhaustedError):
            store.write(lambda writer: writer.create(Kind.ACTIVE, "more", labels={"x": "y" * 100_000}))
    with store.read() as reader:
        assert reader.ids() == directories(disk) | {1}
        assert len(reader.ids()) == len(before) > 10
    assert keys(store) == before
    (disk / "filler").unlink()
    made = store.write(lambda writer: writer.create(Kind.ACTIVE, "more"))
    assert made.id == max(directories(disk)) + 1
    assert keys(store) == [*before, "more"]


def test_full_within_an_operation(store):
    """A closure too large for the disk fails, and what was acknowledged before stays."""
    paths = [f"/nix/store/{number:032d}-{'x' * 200}" for number in range(20_000)]
    made = store.write(lambda writer: writer.create(Kind.ACTIVE, "layer"))
    with pytest.raises(ResourceExhaustedError):
        store.write(lambda writer: writer.put_closure(Closure(snapshot_id=made.id, store_paths=paths)))
    assert keys(store) == ["layer"]
    with store.read() as reader:
        assert reader.nix_layers([made.id]) == set()


def test_reopening_on_a_full_disk(disk):
    """A daemon that starts on a full disk says so, and reads what is there once there is room."""
    path = disk / "metadata.sqlite"
    with contextlib.closing(Store.open(path)) as store:
        store.write(lambda writer: writer.create(Kind.ACTIVE, "a"))
    fill(disk)
    with pytest.raises(ResourceExhaustedError, match=str(path)):
        Store.open(path)
    (disk / "filler").unlink()
    with contextlib.closing(Store.open(path)) as store:
        assert keys(store) == ["a"]


def test_making_the_file_on_a_full_disk(disk):
    """When the file cannot be made for want of space, the next start finds nothing in its way."""
    fill(disk)
    path = disk / "metadata.sqlite"
    with pytest.raises(ResourceExhaustedError, match=str(path)):
        Store.open(path)
    (disk / "filler").unlink()
    with contextlib.closing(Store.open(path)) as store:
        assert keys(store) == []


def test_read_only_disk(disk):
    """On a disk that cannot be written the error names the file and says so."""
    path = disk / "metadata.sqlite"
    with contextlib.closing(Store.open(path)) as store:
        store.write(lambda writer: writer.create(Kind.ACTIVE, "a"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(UnavailableError, match=str(path)) as raised:
        Store.open(path)
    assert "SQLITE_READONLY" in raised.value.message or "SQLITE_CANTOPEN" in raised.value.message
    with pytest.raises(UnavailableError, match="cannot be made: Read-only file system"):
        Store.open(disk / "other.sqlite")
    assert list(disk.iterdir()) == [path]
