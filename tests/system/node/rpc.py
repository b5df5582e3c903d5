"""Calling a daemon's snapshots service without containerd between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

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
        (mount,) = self.stub.Prepare(request, timeout=timeout).mounts
        return mount

    def view(self, key: str, parent: str = ""):
        (mount,) = self.stub.View(snapshots_pb2.ViewSnapshotRequest(key=key, parent=parent)).mounts
        return mount

    def mounts(self, key: str):
        (mount,) = self.stub.Mounts(snapshots_pb2.MountsRequest(key=key)).mounts
        return mount

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
