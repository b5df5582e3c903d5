"""A containerd in this process: the services that nixsnap calls, in dictionaries, on a real socket.

It keeps containerd's rules where ours depend on them (one writer an ingest, an ingest goes with its lease, a commit is
checked, `AlreadyExists` for a key that announces a snapshot which is there) and has hooks for what others do at the
wrong moment.
"""

# ruff: noqa: N802 - the methods have gRPC's names
from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import attrs
import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from nixsnap.api import (
    content_pb2,
    content_pb2_grpc,
    diff_pb2,
    diff_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    mount_pb2,
    snapshots_pb2,
    snapshots_pb2_grpc,
)
from nixsnap.containerd.client import Client, connect

NAMESPACE = "test"
REF_LABEL = "containerd.io/snapshot.ref"


@attrs.define(kw_only=True)
class StoredBlob:
    """A committed blob."""

    data: bytes
    labels: dict[str, str]


@attrs.define
class FakeContainerd:
    """What it holds, for tests to set up and look at, and its hooks."""

    blobs: dict[str, StoredBlob] = attrs.field(factory=dict)
    ingests: dict[str, bytearray] = attrs.field(factory=dict)
    locked: set[str] = attrs.field(factory=set)
    leases: dict[str, list[tuple[str, str]]] = attrs.field(factory=dict)
    collections: int = 0
    snapshots: dict[str, snapshots_pb2.Info] = attrs.field(factory=dict)
    images: dict[str, images_pb2.Image] = attrs.field(factory=dict)
    calls: list[str] = attrs.field(factory=list)
    diff_ids: dict[str, str] = attrs.field(factory=dict)
    before: dict[str, Callable[[grpc.aio.ServicerContext], Awaitable[None]]] = attrs.field(factory=dict)
    """By method: awaited before the call is answered; may change things or abort the call."""

    async def enter(self, method: str, context: grpc.aio.ServicerContext) -> None:
        """Note a call, check its headers, and run its hook."""
        self.calls.append(method)
        headers = dict(context.invocation_metadata() or ())
        assert headers["containerd-namespace"] == NAMESPACE
        lease = headers.get("containerd-lease")
        if lease is not None and lease not in self.leases:
            await context.abort(grpc.StatusCode.NOT_FOUND, "lease does not exist: not found")
        if hook := self.before.get(method):
            await hook(context)

    def count(self, method: str) -> int:
        """How often a method was called."""
        return self.calls.count(method)

    def put_blob(self, data: bytes, **labels: str) -> str:
        """Store a blob as if it had always been there; return its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = StoredBlob(data=data, labels=labels)
        return digest

    def put_snapshot(self, name: str) -> None:
        """Commit a snapshot as if it had always been there."""
        self.snapshots[name] = snapshots_pb2.Info(name=name, kind=snapshots_pb2.COMMITTED)

    @property
    def keys(self) -> list[str]:
        """The active snapshots."""
        return [key for key, info in self.snapshots.items() if info.kind == snapshots_pb2.ACTIVE]


@contextlib.asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[FakeContainerd, Client]]:
    """Serve a new one on a socket in `directory`; yield it and a client of it."""
    fake = FakeContainerd()
    server = grpc.aio.server()
    content_pb2_grpc.add_ContentServicer_to_server(_Content(fake), server)
    leases_pb2_grpc.add_LeasesServicer_to_server(_Leases(fake), server)
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(_Snapshots(fake), server)
    diff_pb2_grpc.add_DiffServicer_to_server(_Diff(fake), server)
    images_pb2_grpc.add_ImagesServicer_to_server(_Images(fake), server)
    address = directory / "containerd.sock"
    server.add_insecure_port(f"unix:{address}")
    await server.start()
    try:
        async with connect(str(address), namespace=NAMESPACE) as client:
            yield fake, client
    finally:
        await server.stop(None)


@attrs.frozen
class _Content(content_pb2_grpc.ContentServicer):
    fake: FakeContainerd

    async def Info(self, request, context):
        await self.fake.enter("Content.Info", context)
        blob = await _get(self.fake.blobs, request.digest, context)
        info = content_pb2.Info(digest=request.digest, size=len(blob.data), labels=blob.labels)
        return content_pb2.InfoResponse(info=info)

    async def Update(self, request, context):
        await self.fake.enter("Content.Update", context)
        blob = await _get(self.fake.blobs, request.info.digest, context)
        for path in request.update_mask.paths:
            name = path.removeprefix("labels.")
            blob.labels[name] = request.info.labels[name]
        return content_pb2.UpdateResponse(info=request.info)

    async def Abort(self, request, context):
        await self.fake.enter("Content.Abort", context)
        await _get(self.fake.ingests, request.ref, context)
        del self.fake.ingests[request.ref]
        return Empty()

    async def Write(self, requests, context):
        # First, as containerd does: a call that ends before its first message is sent has no status but grpc.aio's own.
        first = await anext(requests)
        await self.fake.enter("Content.Write", context)
        if first.expected in self.fake.blobs:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"content {first.expected}: already exists")
        if first.ref in self.fake.locked:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"ref {first.ref} locked for 1s (since then)")
        self.fake.locked.add(first.ref)
        try:
            ingest = self.fake.ingests.setdefault(first.ref, bytearray())
            if lease := dict(context.invocation_metadata()).get("containerd-lease"):
                self.fake.leases[lease].append(("ingests", first.ref))
            yield content_pb2.WriteContentResponse(action=content_pb2.STAT, offset=len(ingest))
            async for request in requests:
                await self._write(first, ingest, request, context)
                yield content_pb2.WriteContentResponse(action=request.action, offset=len(ingest))
        finally:
            self.fake.locked.discard(first.ref)

    async def _write(self, first, ingest, request, context):
        if request.offset == 0:
            del ingest[:]
        if request.offset != len(ingest):
            await context.abort(
                grpc.StatusCode.OUT_OF_RANGE, f"write @{request.offset} must be at {len(ingest)}"
            )
        ingest += request.data
        if request.action != content_pb2.COMMIT:
            return
        await self.fake.enter("Content.Commit", context)
        digest = f"sha256:{hashlib.sha256(ingest).hexdigest()}"
        if digest != request.expected or len(ingest) != request.total:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"unexpected commit digest {digest}")
        self.fake.ingests.pop(first.ref, None)  # gone already, when its lease went meanwhile
        self.fake.blobs[digest] = StoredBlob(data=bytes(ingest), labels=dict(request.labels))


@attrs.frozen
class _Leases(leases_pb2_grpc.LeasesServicer):
    fake: FakeContainerd

    async def Create(self, request, context):
        await self.fake.enter("Leases.Create", context)
        assert request.labels["containerd.io/gc.expire"].endswith("Z")
        self.fake.leases[request.id] = []
        return leases_pb2.CreateResponse(lease=leases_pb2.Lease(id=request.id))

    async def Delete(self, request, context):
        await self.fake.enter("Leases.Delete", context)
        await _get(self.fake.leases, request.id, context)
        for kind, name in self.fake.leases.pop(request.id):
            if request.sync and kind == "ingests":
                self.fake.ingests.pop(name, None)
        self.fake.collections += request.sync
        return Empty()

    async def AddResource(self, request, context):
        await self.fake.enter("Leases.AddResource", context)
        resources = await _get(self.fake.leases, request.id, context)
        resources.append((request.resource.type, request.resource.id))
        return Empty()


@attrs.frozen
class _Snapshots(snapshots_pb2_grpc.SnapshotsServicer):
    fake: FakeContainerd

    async def Stat(self, request, context):
        await self.fake.enter("Snapshots.Stat", context)
        return snapshots_pb2.StatSnapshotResponse(info=await _get(self.fake.snapshots, request.key, context))

    async def Prepare(self, request, context):
        await self.fake.enter("Snapshots.Prepare", context)
        target = request.labels.get(REF_LABEL)
        if target in self.fake.snapshots:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"target snapshot {target!r}: already exists")
        if request.parent:
            await _get(self.fake.snapshots, request.parent, context)
        self.fake.snapshots[request.key] = snapshots_pb2.Info(
            name=request.key, parent=request.parent, kind=snapshots_pb2.ACTIVE, labels=request.labels
        )
        mount = mount_pb2.Mount(type="bind", source=f"/fake/{request.key}", options=["rbind", "rw"])
        return snapshots_pb2.PrepareSnapshotResponse(mounts=[mount])

    async def Commit(self, request, context):
        await self.fake.enter("Snapshots.Commit", context)
        if request.name in self.fake.snapshots:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"snapshot {request.name!r}: already exists")
        info = await _get(self.fake.snapshots, request.key, context)
        del self.fake.snapshots[request.key]
        self.fake.snapshots[request.name] = snapshots_pb2.Info(
            name=request.name, parent=info.parent, kind=snapshots_pb2.COMMITTED, labels=request.labels
        )
        return Empty()

    async def Remove(self, request, context):
        await self.fake.enter("Snapshots.Remove", context)
        await _get(self.fake.snapshots, request.key, context)
        del self.fake.snapshots[request.key]
        return Empty()


@attrs.frozen
class _Diff(diff_pb2_grpc.DiffServicer):
    fake: FakeContainerd

    async def Apply(self, request, context):
        await self.fake.enter("Diff.Apply", context)
        await _get(self.fake.blobs, request.diff.digest, context)
        assert len(request.mounts) == 1
        applied = diff_pb2.ApplyResponse()
        applied.applied.digest = self.fake.diff_ids[request.diff.digest]
        return applied


@attrs.frozen
class _Images(images_pb2_grpc.ImagesServicer):
    fake: FakeContainerd

    async def Get(self, request, context):
        await self.fake.enter("Images.Get", context)
        return images_pb2.GetImageResponse(image=await _get(self.fake.images, request.name, context))

    async def Create(self, request, context):
        await self.fake.enter("Images.Create", context)
        name = request.image.name
        if name in self.fake.images:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"image {name!r}: already exists")
        self.fake.images[name] = request.image
        return images_pb2.CreateImageResponse(image=request.image)

    async def Update(self, request, context):
        await self.fake.enter("Images.Update", context)
        image = await _get(self.fake.images, request.image.name, context)
        for path in request.update_mask.paths:
            if path == "target":
                image.target.CopyFrom(request.image.target)
            else:
                name = path.removeprefix("labels.")
                image.labels[name] = request.image.labels[name]
        return images_pb2.UpdateImageResponse(image=image)

    async def Delete(self, request, context):
        await self.fake.enter("Images.Delete", context)
        await _get(self.fake.images, request.name, context)
        del self.fake.images[request.name]
        return Empty()


async def _get(table, key, context):
    if key not in table:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"{key}: not found")
    return table[key]


def once(hook: Callable[[grpc.aio.ServicerContext], Awaitable[None] | None]):
    """Make a hook of a function that acts the first time only; it may be plain or a coroutine function."""
    left = [hook]

    async def act(context: grpc.aio.ServicerContext) -> None:
        if left:
            result = left.pop()(context)
            if result is not None:
                await result

    return act


def failing(code: grpc.StatusCode, details: str):
    """Make a hook that aborts every call."""

    async def act(context: grpc.aio.ServicerContext) -> None:
        await context.abort(code, details)

    return act


def on_fake(directory: Path, test: Callable[[FakeContainerd, Client], Awaitable[None]]) -> None:
    """Run a test's coroutine with a new fake and a client of it, in half a minute at most."""

    async def main() -> None:
        async with asyncio.timeout(30), serving(directory) as (fake, client):
            await test(fake, client)

    asyncio.run(main())
