"""Power cuts: what was acknowledged is there afterwards, and what was not is whole or not there at all.

The disk is a file system in a file, and the power cut a copy of that file (`lab.filesystems`). Its journal is committed
by nothing but syncs here, so that what is missing after a power cut is missing in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import grpc
import pytest
from lab import NixsnapDaemon, unmount_below
from lab.filesystems import after_power_cut, make_file_system, mount_image
from rpc import Rpc, connect, mounted_as_containerd, refused

from nixsnap.api import snapshots_pb2
from nixsnap.metadata import Kind, Store

MIB = 1 << 20
# More than lie between two checkpoints, so that the log is written from its start again: while it grows, syncing it
# commits the file system's journal, and with it the directories.
MANY_WRITES = 450


@attrs.frozen
class Disk:
    """A disk, and the place where one sees what a power cut would leave of it."""

    image: Path
    before: Path
    after: Path

    @contextmanager
    def power_cut(self) -> Iterator[Path]:
        with after_power_cut(self.image, self.after):
            yield self.after


@pytest.fixture
def disk(directory: Path) -> Iterator[Disk]:
    """An ext4 that writes nothing by itself for ten minutes."""
    disk = Disk(directory / "ext4.img", directory / "before", directory / "after")
    make_file_system(disk.image, "ext4", size_bytes=64 * MIB)
    mount_image(disk.image, disk.before, options="loop,noinit_itable,commit=600")
    yield disk
    unmount_below(disk.before)


@contextmanager
def serving(directory: Path, root: Path) -> Iterator[tuple[NixsnapDaemon, Rpc]]:
    directory.mkdir(exist_ok=True)
    daemon = NixsnapDaemon.start(directory, root=root)
    try:
        with connect(daemon.address) as rpc:
            yield daemon, rpc
    finally:
        daemon.destroy()


def write_much(rpc: Rpc, name: str) -> None:
    info = snapshots_pb2.Info(name=name)
    for _ in range(MANY_WRITES):
        rpc.stub.Update(snapshots_pb2.UpdateSnapshotRequest(info=info))


def keys(store: Store) -> list[str]:
    with store.read() as reader:
        return [info.name for info in reader.walk()]


def test_acknowledged_writes(disk):
    """Each write is on the disk when it returns: while the log grows, and when it is written over."""
    store = Store.open(disk.before / "metadata.sqlite")
    for number in range(MANY_WRITES):
        store.write(lambda tx, number=number: tx.create(Kind.ACTIVE, f"{number:04}"))
        if number % 50 == 0 or number == MANY_WRITES - 1:
            with disk.power_cut() as after:
                left = Store.open(after / "metadata.sqlite")
                assert keys(left) == [f"{made:04}" for made in range(number + 1)]
                left.close()
    store.close()


def test_writes_that_need_not_be_durable(disk):
    """A power cut takes them back, in this case; with the next durable write they are there."""
    store = Store.open(disk.before / "metadata.sqlite")
    store.write(lambda tx: tx.create(Kind.ACTIVE, "first"))
    store.write(lambda tx: tx.remove("first"), durable=False)
    with disk.power_cut() as after:
        left = Store.open(after / "metadata.sqlite")
        assert keys(left) == ["first"]
        left.close()
    store.write(lambda tx: tx.create(Kind.ACTIVE, "second"))
    with disk.power_cut() as after:
        left = Store.open(after / "metadata.sqlite")
        assert keys(left) == ["second"]
        left.close()
    store.close()


def test_snapshots_made_just_before(directory, disk, closure):
    """Active snapshots and views are there again, usable; a committed one whose files are gone is told of."""
    root = disk.before / "root"
    with serving(directory / "n", root) as (_, rpc):
        rpc.prepare("base making")
        rpc.commit("base", "base making")
        rpc.nix_layer("nix layer", closure.paths, "base")
        write_much(rpc, "base")
        rpc.prepare("active", "base")
        rpc.prepare("alone")
        rpc.view("seen", "base")
        rpc.prepare("of nix", "nix layer")
        rpc.prepare("unpacked")
        rpc.commit("late", "unpacked")
        rpc.prepare("upon late", "late")
        made = {int(path.name) for path in (root / "snapshots").iterdir()}
        with disk.power_cut() as after:
            kept = {int(path.name) for path in (after / "root/snapshots").iterdir()}
            assert len(made - kept) == 6, "the directories were written after all"
            with serving(directory / "m", after / "root") as (daemon, again):
                assert sorted(again.list()) == [
                    "active", "alone", "base", "late", "nix layer", "of nix", "seen", "upon late"
                ]  # fmt: skip
                late, upon_late = sorted(made)[-2:]
                assert {int(path.name) for path in (after / "root/snapshots").iterdir()} == made - {
                    late,
                    upon_late,
                }
                with mounted_as_containerd(again.all_mounts("active"), directory / "t") as shown:
                    (shown / "file").write_text("x")
                with mounted_as_containerd(again.all_mounts("of nix"), directory / "u") as shown:
                    assert (shown / closure.top.lstrip("/")).is_dir()
                with refused(grpc.StatusCode.DATA_LOSS, "parent snapshot are gone", "pull that again"):
                    again.prepare("upon it", "late")
                for key in ("active", "alone", "seen", "of nix", "upon late", "late"):
                    again.remove(key)
                log = daemon.log_text()
        assert "the files of a committed snapshot are gone" in log
        assert "'late'" in log
        assert (
            f"cannot make the directory of a snapshot again id={upon_late} error=the files of the parent"
            in log
        )


def test_snapshots_removed_just_before(directory, disk):
    """Their rows may come back: with all of their files or with none, and they can be removed again."""
    root = disk.before / "root"
    with serving(directory / "n", root) as (_, rpc):
        mount = rpc.prepare("making")
        for number in range(100):
            (Path(mount.source) / f"file {number}").write_text("x")
        rpc.commit("removed", "making")
        write_much(rpc, "removed")
        rpc.prepare("durable")
        rpc.remove("removed")
        with disk.power_cut() as after:
            assert len(list((after / "root/snapshots/1/fs").iterdir())) == 100
            with serving(directory / "m", after / "root") as (_, again):
                assert again.list() == ["durable", "removed"]
                again.remove("removed")
                assert again.list() == ["durable"]
