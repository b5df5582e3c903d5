"""containerd's snapshots service, `containerd.services.snapshots.v1.Snapshots`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import grpc
from google.protobuf import empty_pb2, timestamp_pb2

from nixsnap.api import mount_pb2, snapshots_pb2, snapshots_pb2_grpc
from nixsnap.metadata.records import Info, Kind
from nixsnap.services.callers import caller_of
from nixsnap.services.errors import refuse, translated
from nixsnap.snapshots.snapshotter import Snapshotter
from nixsnap.snapshots.views import MountOperation

_NANOSECONDS: Final = 1_000_000_000
_BLOCK_BYTES: Final = 1 << 20
_EMPTY: Final = empty_pb2.Empty()

_KINDS: Final = {
    Kind.VIEW: snapshots_pb2.VIEW,
    Kind.ACTIVE: snapshots_pb2.ACTIVE,
    Kind.COMMITTED: snapshots_pb2.COMMITTED,
}


class SnapshotsService(snapshots_pb2_grpc.SnapshotsServicer):
    """Serves a snapshotter. Requests name a snapshotter too; containerd has chosen by it already."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    @translated
    def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        mounts = self._snapshotter.prepare(
            request.key, request.parent, request.labels, caller=caller_of(context)
        )
        return snapshots_pb2.PrepareSnapshotResponse(mounts=map(_mount, mounts))

    @translated
    def View(
        self, request: snapshots_pb2.ViewSnapshotRequest, _context: grpc.ServicerContext
    ) -> snapshots_pb2.ViewSnapshotResponse:
        mounts = self._snapshotter.view(request.key, request.parent, request.labels)
        return snapshots_pb2.ViewSnapshotResponse(mounts=map(_mount, mounts))

    @translated
    def Mounts(
        self, request: snapshots_pb2.MountsRequest, _context: grpc.ServicerContext
    ) -> snapshots_pb2.MountsResponse:
        mounts = self._snapshotter.mounts(request.key)
        return snapshots_pb2.MountsResponse(mounts=map(_mount, mounts))

    @translated
    def Commit(
        self, request: snapshots_pb2.CommitSnapshotRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._snapshotter.commit(
            request.name, request.key, request.labels, request.parent, caller=caller_of(context)
        )
        return _EMPTY

    @translated
    def Remove(
        self, request: snapshots_pb2.RemoveSnapshotRequest, _context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._snapshotter.remove(request.key)
        return _EMPTY

    @translated
    def Stat(
        self, request: snapshots_pb2.StatSnapshotRequest, _context: grpc.ServicerContext
    ) -> snapshots_pb2.StatSnapshotResponse:
        return snapshots_pb2.StatSnapshotResponse(info=_info(self._snapshotter.stat(request.key)))

    @translated
    def Update(
        self, request: snapshots_pb2.UpdateSnapshotRequest, _context: grpc.ServicerContext
    ) -> snapshots_pb2.UpdateSnapshotResponse:
        # Name and labels are all of it that can matter: the rest of an Info is immutable.
        info = Info(name=request.info.name, kind=Kind.UNKNOWN, labels=dict(request.info.labels))
        updated = self._snapshotter.update(info, list(request.update_mask.paths))
        return snapshots_pb2.UpdateSnapshotResponse(info=_info(updated))

    def List(
        self, request: snapshots_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        try:
            for block in self._snapshotter.walk(list(request.filters)):
                yield from _responses(map(_info, block))
        except Exception as exc:  # noqa: BLE001 - whatever it is, the client must hear of it
            refuse(exc, context, call="List")

    @translated
    def Usage(
        self, request: snapshots_pb2.UsageRequest, _context: grpc.ServicerContext
    ) -> snapshots_pb2.UsageResponse:
        usage = self._snapshotter.usage(request.key)
        return snapshots_pb2.UsageResponse(size=usage.size_bytes, inodes=usage.inodes)

    @translated
    def Cleanup(
        self, _request: snapshots_pb2.CleanupRequest, _context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._snapshotter.cleanup()
        return _EMPTY


def _responses(infos: Iterable[snapshots_pb2.Info]) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
    """Cut a block so that each message is well below what clients take: a nix layer may have thousands of labels."""
    response, size_bytes = snapshots_pb2.ListSnapshotsResponse(), 0
    for info in infos:
        response.info.append(info)
        size_bytes += info.ByteSize()
        if size_bytes > _BLOCK_BYTES:
            yield response
            response, size_bytes = snapshots_pb2.ListSnapshotsResponse(), 0
    if response.info:
        yield response


def _mount(operation: MountOperation) -> mount_pb2.Mount:
    entry = operation.describe()
    return mount_pb2.Mount(type=entry.type, source=entry.source, target=entry.target, options=entry.options)


def _info(info: Info) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=_timestamp(info.created_ns),
        updated_at=_timestamp(info.updated_ns),
        labels=info.labels,
    )


def _timestamp(nanoseconds: int) -> timestamp_pb2.Timestamp:
    seconds, nanos = divmod(nanoseconds, _NANOSECONDS)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
