"""containerd's diff service: a layer blob unpacked into mounts."""

from __future__ import annotations

from collections.abc import Iterable

from nixsnap.api import diff_pb2, diff_pb2_grpc, mount_pb2
from nixsnap.containerd.client import Client
from nixsnap.containerd.descriptors import to_message
from nixsnap.image.oci import Descriptor


class Diff:
    """The diff service, with the blobs of a client's namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stub = diff_pb2_grpc.DiffStub(client.channel)

    async def apply(self, layer: Descriptor, mounts: Iterable[mount_pb2.Mount]) -> str:
        """Unpack `layer` into the file tree that `mounts` make, whatever time it takes.

        Returns:
            The digest of the layer uncompressed: its diff id.
        """
        request = diff_pb2.ApplyRequest(diff=to_message(layer), mounts=mounts)
        doing = f"unpack layer {layer.digest}"
        return (await self._client.call(self._stub.Apply, request, doing=doing, timeout=None)).applied.digest
