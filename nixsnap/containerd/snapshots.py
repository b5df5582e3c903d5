"""containerd's snapshots service, through which any of its snapshotters is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nixsnap.api import mount_pb2, snapshots_pb2, snapshots_pb2_grpc
from nixsnap.containerd.client import Client


class Snapshots:
    """One snapshotter's snapshots in a client's namespace.

    Preparing may fetch a closure and committing may walk a tree, so those two have no deadline.
    """

    def __init__(self, client: Client, snapshotter: str) -> None:
        self._client = client
        self._stub = snapshots_pb2_grpc.SnapshotsStub(client.channel)
        self.snapshotter = snapshotter

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[mount_pb2.Mount]:
        """Make an active snapshot and return its mounts.

        Args:
            key: Its key.
            parent: A committed name, or empty.
            labels: Those that begin with `containerd.io/snapshot/` reach the snapshotter.

        Raises:
            AlreadyExistsError: The key is taken, or the snapshot that `containerd.io/snapshot.ref` announces is there.
            NotFoundError: There is no such parent.
        """
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=labels
        )
        doing = f"prepare snapshot {key!r} on {self.snapshotter}"
        return (await self._client.call(self._stub.Prepare, request, doing=doing, timeout=None)).mounts

    async def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Commit the active snapshot `key` as `name`.

        Raises:
            AlreadyExistsError: The name is taken.
            NotFoundError: There is no such key.
        """
        request = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=self.snapshotter, name=name, key=key, labels=labels
        )
        doing = f"commit snapshot {key!r} on {self.snapshotter}"
        await self._client.call(self._stub.Commit, request, doing=doing, timeout=None)

    async def stat(self, key: str) -> snapshots_pb2.Info:
        """Describe a snapshot.

        Raises:
            NotFoundError: There is none.
            InvalidArgumentError: containerd has no such snapshotter.
        """
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self.snapshotter, key=key)
        doing = f"look up snapshot {key!r} on {self.snapshotter}"
        return (await self._client.call(self._stub.Stat, request, doing=doing)).info

    async def remove(self, key: str) -> None:
        """Remove a snapshot; its files go with containerd's next collection.

        Raises:
            NotFoundError: There is none.
            FailedPreconditionError: It has children.
        """
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
        doing = f"remove snapshot {key!r} on {self.snapshotter}"
        await self._client.call(self._stub.Remove, request, doing=doing)
