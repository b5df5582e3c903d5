"""Calling a daemon's snapshots service without containerd between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from lab import run

from nixsnap.api import snapshots_pb2, snapshots_pb2_grpc

LABEL = "containerd.io/snapshot/"


class Rpc:
    """The ten methods, with plain arguments."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = snapshots_pb2_grpc.SnapshotsStub(channel)

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None, timeout: float = 60.0
    ):
        request = snapshots_pb2.PrepareSnapshotRequest(key=key, parent=parent, labels=labels or {})
        return self._first(self.stub.Prepare(request, timeout=timeout).mounts)

    def view(self, key: str, parent: str = ""):
        return self._first(self.stub.View(snapshots_pb2.ViewSnapshotRequest(key=key, parent=parent)).mounts)

    def mounts(self, key: str):
        return self._first(self.all_mounts(key))

    def all_mounts(self, key: str):
        """Every mount: several for views whose store paths are mounts of their own."""
        return self.stub.Mounts(snapshots_pb2.MountsRequest(key=key)).mounts

    def _first(self, mounts):
        """The mount of the root directory, which is all of them but for those further down."""
        first, *within = mounts
        assert first.target == ""
        assert all(mount.target.startswith("/nix/store") for mount in within)
        return first

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        request = snapshots_pb2.CommitSnapshotRequest(name=name, key=key, labels=labels or {}, parent=parent)
        self.stub.Commit(request)

    def remove(self, key: str) -> None:
        self.stub.Remove(snapshots_pb2.RemoveSnapshotRequest(key=key))

    def stat(self, key: str):
        return self.stub.Stat(snapshots_pb2.StatSnapshotRequest(key=key)).info

    def usage(self, key: str):
        return self.stub.Usage(snapshots_pb2.UsageRequest(key=key))

    def cleanup(self) -> None:
        self.stub.Cleanup(snapshots_pb2.CleanupRequest())

    def list(self, *filters: str) -> list[str]:
        blocks = self.stub.List(snapshots_pb2.ListSnapshotsRequest(filters=filters))
        return [info.name for block in blocks for info in block.info]

    def nix_layer(self, name: str, paths, parent: str = "") -> None:
        """Make a committed nix layer as an unpacker does, without files of its own."""
        self.prepare(f"extract {name}", parent, store_path_labels(paths))
        self.commit(name, f"extract {name}")


def store_path_labels(paths) -> dict[str, str]:
    return {
        f"{LABEL}nix-layer": "true",
        **{f"{LABEL}nix-store-path.{i}": path for i, path in enumerate(paths)},
    }


@contextmanager
def connect(address: Path) -> Iterator[Rpc]:
    with grpc.insecure_channel(f"unix://{address}") as channel:
        yield Rpc(channel)


@contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    """The call within ends with `code`, and its message has all of `words`."""
    with pytest.raises(grpc.RpcError) as raised:
        yield
    assert (raised.value.code(), raised.value.details()) == (code, raised.value.details())
    for word in words:
        assert word in raised.value.details()


def files(mount) -> Path:
    """The directory that a bind mount shows."""
    assert mount.type == "bind"
    return Path(mount.source)


@contextmanager
def mounted_as_containerd(mounts, target: Path) -> Iterator[Path]:
    """Mount what the snapshotter says as containerd's clients do for a moment (core/mount/temp.go), one by one."""
    target.mkdir()
    done = []
    try:
        for mount in mounts:
            done.append(target / mount.target.lstrip("/"))
            run("mount", "-t", mount.type, "-o", ",".join(mount.options), mount.source, done[-1])
            if mount.type == "bind" and "ro" in mount.options:
                run("mount", "-o", "remount,bind,ro", done[-1])
        yield target
    finally:
        for place in reversed(done):
            run("umount", place)  # plainly: what is left in it makes this fail, as it does there
        target.rmdir()
