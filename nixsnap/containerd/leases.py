"""containerd's leases: what one names is not collected as garbage while it lasts."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import secrets
from collections.abc import AsyncIterator

from nixsnap import errors
from nixsnap.api import leases_pb2, leases_pb2_grpc
from nixsnap.containerd.client import Client

EXPIRY = dt.timedelta(hours=24)
"""How long a lease outlives a process that was killed; what containerd's own clients use."""

_EXPIRE_LABEL = "containerd.io/gc.expire"  # RFC 3339

_log = logging.getLogger(__name__)


class Leases:
    """The leases of a client's namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stub = leases_pb2_grpc.LeasesStub(client.channel)

    async def create(self, lease: str, *, expiry: dt.timedelta = EXPIRY) -> None:
        """Make a lease that containerd drops by itself after `expiry`.

        Raises:
            AlreadyExistsError: The id is taken.
        """
        until = dt.datetime.now(dt.UTC) + expiry
        labels = {_EXPIRE_LABEL: until.strftime("%Y-%m-%dT%H:%M:%SZ")}
        request = leases_pb2.CreateRequest(id=lease, labels=labels)
        await self._client.call(self._stub.Create, request, doing=f"create lease {lease}")

    async def delete(self, lease: str, *, collect: bool = False) -> None:
        """Drop a lease.

        Args:
            lease: Its id.
            collect: Return only after a garbage collection, so that what nothing else keeps is gone.

        Raises:
            NotFoundError: There is none.
        """
        request = leases_pb2.DeleteRequest(id=lease, sync=collect)
        await self._client.call(self._stub.Delete, request, doing=f"delete lease {lease}")

    async def keep_blob(self, lease: str, digest: str) -> None:
        """Put a blob under a lease. It need not exist: look only afterwards, and it cannot vanish any more."""
        await self._add(lease, leases_pb2.Resource(id=digest, type="content"))

    async def keep_snapshot(self, lease: str, snapshotter: str, name: str) -> None:
        """Put a snapshot, and so its parents, under a lease. It need not exist, as with `keep_blob`."""
        await self._add(lease, leases_pb2.Resource(id=name, type=f"snapshots/{snapshotter}"))

    async def _add(self, lease: str, resource: leases_pb2.Resource) -> None:
        request = leases_pb2.AddResourceRequest(id=lease, resource=resource)
        doing = f"put {resource.type} {resource.id} under lease {lease}"
        await self._client.call(self._stub.AddResource, request, doing=doing)


@contextlib.asynccontextmanager
async def leased(client: Client) -> AsyncIterator[Client]:
    """Yield a client whose calls are under a lease of their own, which ends with the block.

    Where the block fails, containerd collects what it made before the exception goes on its way.
    """
    leases = Leases(client)
    lease = f"nixsnap-{secrets.token_hex(8)}"
    await leases.create(lease)
    try:
        yield client.under(lease)
    except BaseException:
        try:
            await leases.delete(lease, collect=True)
        except errors.NixsnapError as error:
            _log.warning("lease %s stays until it expires: %s", lease, error)
        raise
    await leases.delete(lease)
