"""Puts blobs into the content store under a lease, whoever else stores, labels or collects them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from nixsnap import errors
from nixsnap.containerd.client import Client
from nixsnap.containerd.content import Blob, Content
from nixsnap.containerd.leases import Leases

_WRITERS = 3  # at once, as many as containerd's own pulls have by default
_ATTEMPTS = 3


async def store(
    client: Client, blobs: Sequence[Blob], *, stored: Callable[[int], None] | None = None
) -> None:
    """Store blobs: those with labels, which name others, one by one after all that have none.

    Afterwards each is in the namespace with its labels, and stays as long as the lease. After a failure nothing half
    written is left.

    Args:
        client: Under a lease.
        blobs: Those that name others stand after what they name.
        stored: Told how many bytes more are there.

    Raises:
        NixsnapError: As for `Content.write`.
    """
    storing = _Storing(client, stored)
    limit = asyncio.Semaphore(_WRITERS)

    async def store_leaf(blob: Blob) -> None:
        async with limit:
            await storing.store(blob)

    try:
        async with asyncio.TaskGroup() as tasks:
            for blob in blobs:
                if not blob.labels:
                    tasks.create_task(store_leaf(blob))
    except BaseExceptionGroup as group:
        raise _first(group) from None
    for blob in blobs:
        if blob.labels:
            await storing.store(blob)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended the others."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Storing:
    def __init__(self, client: Client, stored: Callable[[int], None] | None) -> None:
        if client.lease is None:
            raise errors.FailedPreconditionError("storing blobs needs a lease")
        self._lease = client.lease
        self._leases = Leases(client)
        self._content = Content(client)
        self._stored = stored

    async def store(self, blob: Blob) -> None:
        for _ in range(_ATTEMPTS):
            try:
                await self._content.write(blob, wrote=self._stored)
            except errors.AlreadyExistsError:
                if await self._adopt(blob):
                    return
            else:
                return
        raise errors.UnavailableError(f"cannot store blob {blob.digest}: it comes and goes")

    async def _adopt(self, blob: Blob) -> bool:
        """Put a blob that is there under our lease and complete its labels; tell whether it still is."""
        await self._leases.keep_blob(self._lease, blob.digest)
        try:
            found = await self._content.info(blob.digest)
        except errors.NotFoundError:
            return False
        missing = dict(blob.labels.items() - found.labels.items())
        if missing:
            await self._content.label(blob.digest, missing)
        if self._stored is not None:
            self._stored(blob.size_bytes)
        return True
