"""containerd's content store: blobs by digest, their labels, and resumable writes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol, TypeAlias

import attrs
import grpc
import grpc.aio

from nixsnap import errors
from nixsnap.api import content_pb2, content_pb2_grpc
from nixsnap.containerd.client import Client, translate

CHUNK_BYTES = 1 << 20
"""Most data in one message; containerd takes up to 16 MiB."""

_LOCKED_PAUSE_SECONDS = 0.02
_LOCKED_PAUSE_MAX_SECONDS = 1.0

_log = logging.getLogger(__name__)

_WriteCall: TypeAlias = (
    "grpc.aio.StreamStreamCall[content_pb2.WriteContentRequest, content_pb2.WriteContentResponse]"
)


class Readable(Protocol):
    """What a blob is read from: an open binary file will do."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""

    def seek(self, offset: int, /) -> int:
        """Go to `offset` bytes from the beginning."""

    def close(self) -> None:
        """Give up the file."""


@attrs.frozen(kw_only=True)
class BlobInfo:
    """A blob in the store: size in bytes and labels."""

    digest: str
    size_bytes: int
    labels: Mapping[str, str]


@attrs.frozen(kw_only=True)
class Blob:
    """A blob to store.

    Attributes:
        digest: What the data must hash to.
        size_bytes: Its length.
        open: Opens the data, at its beginning; whoever calls it closes what it gets.
        labels: Given to the blob when it is committed.
    """

    digest: str
    size_bytes: int
    open: Callable[[], Readable]
    labels: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def ref(self) -> str:
        """The name of its ingest; always the same, so that a write cut short by a crash is taken up again."""
        return f"nixsnap-{self.digest}"


class Content:
    """The content store of a client's namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stub = content_pb2_grpc.ContentStub(client.channel)

    async def info(self, digest: str) -> BlobInfo:
        """Describe one blob.

        Raises:
            NotFoundError: The namespace does not have it.
        """
        request = content_pb2.InfoRequest(digest=digest)
        info = (await self._client.call(self._stub.Info, request, doing=f"look up blob {digest}")).info
        return BlobInfo(digest=info.digest, size_bytes=info.size, labels=dict(info.labels))

    async def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set `labels` on a blob and leave its others alone.

        Raises:
            NotFoundError: The namespace does not have it.
        """
        request = content_pb2.UpdateRequest(info=content_pb2.Info(digest=digest, labels=labels))
        request.update_mask.paths.extend(f"labels.{name}" for name in labels)
        await self._client.call(self._stub.Update, request, doing=f"label blob {digest}")

    async def abort(self, ref: str) -> None:
        """Drop an ingest; nothing happens if there is none."""
        request = content_pb2.AbortRequest(ref=ref)
        with contextlib.suppress(errors.NotFoundError):
            await self._client.call(self._stub.Abort, request, doing=f"abort ingest {ref}")

    async def write(self, blob: Blob, *, wrote: Callable[[int], None] | None = None) -> None:
        """Store a blob, going on where an earlier attempt stopped and waiting while another client writes it.

        Afterwards the namespace has the blob, with its labels. After a failure nothing of the attempt is left.

        Args:
            blob: What to store.
            wrote: Told how many bytes each step brought the blob on, those of an earlier attempt included.

        Raises:
            AlreadyExistsError: The namespace has it, labelled as it was before.
            FailedPreconditionError: The data is not what its digest and size say.
        """
        meter = _Meter(tell=wrote)
        try:
            await self._write(blob, meter)
        except _StaleIngestError:
            _log.info("blob %s: what an earlier attempt left is damaged; starting over", blob.digest)
            await self._write(blob, meter)

    async def _write(self, blob: Blob, meter: _Meter) -> None:
        async with self._ingest(blob) as (call, reached):
            offset = reached if reached <= blob.size_bytes else 0
            try:
                await _send(call, blob, offset, meter)
            except errors.FailedPreconditionError as error:
                if offset:
                    raise _StaleIngestError(error.message) from error
                raise

    @contextlib.asynccontextmanager
    async def _ingest(self, blob: Blob) -> AsyncIterator[tuple[_WriteCall, int]]:
        """Open a blob's ingest for writing; yield the stream and how many bytes the ingest holds.

        containerd lets one stream at a time write an ingest. It is ours from the first answer on, so a block that
        fails drops it, and not before: until then it is someone else's.
        """
        opening = content_pb2.WriteContentRequest(
            action=content_pb2.STAT, ref=blob.ref, expected=blob.digest, total=blob.size_bytes
        )
        pause = _LOCKED_PAUSE_SECONDS
        while True:
            call = self._stub.Write(metadata=self._client.metadata)
            try:
                reply = await _exchange(call, opening, blob)
            except errors.UnavailableError as error:
                # containerd knows no other sign of it: "ref … locked for …" (content/local/locks.go, 1.6 to 2.1)
                if " locked for " not in error.message:
                    raise
                _log.debug("blob %s: another client is writing it", blob.digest)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LOCKED_PAUSE_MAX_SECONDS)
                continue
            break
        try:
            yield call, reply.offset
        except errors.AlreadyExistsError:
            raise  # and containerd has dropped the ingest
        except BaseException:
            await self._drop(blob.ref)
            raise
        finally:
            call.cancel()  # no-op once it has ended; else it would keep the ingest locked

    async def _drop(self, ref: str) -> None:
        try:
            await self.abort(ref)
        except errors.NixsnapError as error:
            _log.warning("ingest %s stays until its lease ends: %s", ref, error)


@attrs.define(kw_only=True)
class _Meter:
    """Tells how far a write has come, and nothing twice when it starts over."""

    tell: Callable[[int], None] | None
    reached: int = 0

    def reach(self, offset: int) -> None:
        """Tell the bytes up to `offset`."""
        if self.tell is not None and offset > self.reached:
            self.tell(offset - self.reached)
        self.reached = max(self.reached, offset)


class _StaleIngestError(errors.FailedPreconditionError):
    """What a resumed ingest held before was not the beginning of the blob."""


async def _send(call: _WriteCall, blob: Blob, offset: int, meter: _Meter) -> None:
    """Send a blob from `offset` on, the commit with the last of it."""
    source = await asyncio.to_thread(blob.open)
    with contextlib.closing(source):
        if offset:
            await asyncio.to_thread(source.seek, offset)
            meter.reach(offset)
        while True:
            data = await asyncio.to_thread(source.read, min(CHUNK_BYTES, blob.size_bytes - offset))
            last = offset + len(data) >= blob.size_bytes or not data
            request = content_pb2.WriteContentRequest(
                action=content_pb2.COMMIT if last else content_pb2.WRITE, offset=offset, data=data
            )
            if last:
                request.MergeFrom(
                    content_pb2.WriteContentRequest(
                        expected=blob.digest, total=blob.size_bytes, labels=blob.labels
                    )
                )
            await _exchange(call, request, blob)
            offset += len(data)
            meter.reach(offset)
            if last:
                return


async def _exchange(
    call: _WriteCall, request: content_pb2.WriteContentRequest, blob: Blob
) -> content_pb2.WriteContentResponse:
    """Send one message of a write and return containerd's answer to it."""
    try:
        with contextlib.suppress(asyncio.InvalidStateError):  # the stream has ended; reading says why
            await call.write(request)
        reply = await call.read()
    except grpc.aio.AioRpcError as error:
        raise translate(error, doing=f"store blob {blob.digest}") from error
    if isinstance(reply, content_pb2.WriteContentResponse):
        return reply
    raise errors.UnavailableError(f"cannot store blob {blob.digest}: containerd ended the write early")
