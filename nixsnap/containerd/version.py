"""Which containerd answers."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from nixsnap.api import version_pb2_grpc
from nixsnap.containerd.client import Client


async def version(client: Client) -> str:
    """Return containerd's version as it says it: packagers write `1.6.20~ds1` and `v2.1.9` alike."""
    stub = version_pb2_grpc.VersionStub(client.channel)
    return (await client.call(stub.Version, Empty(), doing="ask containerd for its version")).version
