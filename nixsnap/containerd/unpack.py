"""Unpacks an image's layers into one of containerd's snapshotters, handing it the layers' annotations.

containerd's own unpacker does the same on the server's side, but `ctr image import` and 1.x clients leave the
annotations out, and the Transfer service needs `unpack_config`. The calls below are the same in 1.6, 1.7 and 2.x.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from nixsnap import errors
from nixsnap.api import mount_pb2
from nixsnap.containerd.client import Client
from nixsnap.containerd.content import Content
from nixsnap.containerd.diff import Diff
from nixsnap.containerd.leases import Leases
from nixsnap.containerd.snapshots import Snapshots
from nixsnap.image.oci import Descriptor

LABEL_BYTES_MAX = 4096
"""containerd's limit on a label's name and value together (labels/validate.go)."""

_INHERITED = "containerd.io/snapshot/"
_REF_LABEL = "containerd.io/snapshot.ref"  # the name that a key will be committed as
_UNCOMPRESSED_LABEL = "containerd.io/uncompressed"  # a layer blob's diff id
_SNAPSHOT_GC_LABEL = "containerd.io/gc.ref.snapshot."
_ATTEMPTS = 3

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Layer:
    """One layer of an image, in its place.

    Attributes:
        descriptor: The blob, with its annotations.
        diff_id: The digest of its tar.
        chain_id: Names its snapshot: the digest of its diff id and all those below.
        parent: The chain id of the layer below; empty for the lowest.
    """

    descriptor: Descriptor
    diff_id: str
    chain_id: str
    parent: str

    @property
    def snapshot_labels(self) -> dict[str, str]:
        """The labels of its snapshot."""
        return {**inherited_labels(self.descriptor.annotations), _REF_LABEL: self.chain_id}


def inherited_labels(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return those of a layer's annotations that become labels of its snapshot."""
    return {name: value for name, value in annotations.items() if name.startswith(_INHERITED)}


def stack(descriptors: Iterable[Descriptor], diff_ids: Iterable[str]) -> tuple[Layer, ...]:
    """Pair layers, lowest first, with their diff ids and work out their chain ids.

    Raises:
        ValueError: There are not as many of the one as of the other.
    """
    layers: list[Layer] = []
    parent = ""
    for descriptor, diff_id in zip(descriptors, diff_ids, strict=True):
        # The OCI image specification's ChainID: the lowest layer's is its diff id.
        chain_id = diff_id
        if parent:
            chain_id = f"sha256:{hashlib.sha256(f'{parent} {diff_id}'.encode()).hexdigest()}"
        layers.append(Layer(descriptor=descriptor, diff_id=diff_id, chain_id=chain_id, parent=parent))
        parent = chain_id
    return tuple(layers)


def gc_label(snapshotter: str) -> str:
    """Return the label by which an image's config blob keeps its top snapshot from being collected."""
    return f"{_SNAPSHOT_GC_LABEL}{snapshotter}"


async def is_unpacked(client: Client, snapshotter: str, layers: Sequence[Layer]) -> bool:
    """Tell whether the snapshots of all layers are there.

    Raises:
        InvalidArgumentError: containerd has no such snapshotter.
    """
    return await _exists(Snapshots(client, snapshotter), layers[-1].chain_id) if layers else True


async def unpack(
    client: Client,
    snapshotter: str,
    layers: Sequence[Layer],
    *,
    config: str,
    unpacked: Callable[[Layer], None] | None = None,
) -> None:
    """Make the snapshots of an image whose blobs are in the content store, and let its config blob keep them.

    Others may unpack the same layers meanwhile; whoever commits first wins. On failure no key is left.

    Args:
        client: Under a lease, which keeps the snapshots until the image's record does.
        snapshotter: The name containerd has it by.
        layers: From `stack`.
        config: The config blob's digest.
        unpacked: Told of each layer that is there.
    """
    if not layers:
        return
    unpacker = _Unpacker(client, snapshotter)
    present = await unpacker.present(layers)
    for index, layer in enumerate(layers):
        if index >= present:
            await unpacker.unpack(layer)
        if unpacked is not None:
            unpacked(layer)
    await Content(client).label(config, {gc_label(snapshotter): layers[-1].chain_id})


class _Unpacker:
    def __init__(self, client: Client, snapshotter: str) -> None:
        if client.lease is None:
            raise errors.FailedPreconditionError("unpacking needs a lease")
        self._lease = client.lease
        self._leases = Leases(client)
        self._content = Content(client)
        self._diff = Diff(client)
        self._snapshots = Snapshots(client, snapshotter)

    async def present(self, layers: Sequence[Layer]) -> int:
        """Return how many layers from the bottom up have snapshots; from now on they stay."""
        while True:
            found = await asyncio.gather(*(_exists(self._snapshots, layer.chain_id) for layer in layers))
            count = max((index + 1 for index, there in enumerate(found) if there), default=0)
            if count == 0 or await self._keep(layers[count - 1]):
                return count

    async def unpack(self, layer: Layer) -> None:
        """Make the snapshot of one layer whose parent is there."""
        for _ in range(_ATTEMPTS):
            # The form of containerd's own keys; some snapshotters look for the prefix "extract-".
            key = f"extract-{time.time_ns() % 1_000_000_000}-{secrets.token_hex(3)} {layer.chain_id}"
            try:
                await self._extract(layer, key)
            except errors.AlreadyExistsError:
                _log.debug("layer %s: someone else has unpacked it", layer.descriptor.digest)
                # 1.6 does not put what exists under our lease, so it may be gone again.
                if await self._keep(layer):
                    return
            else:
                return
        raise errors.UnavailableError(
            f"cannot unpack layer {layer.descriptor.digest}: its snapshot {layer.chain_id} comes and goes"
        )

    async def _extract(self, layer: Layer, key: str) -> None:
        labels = layer.snapshot_labels
        try:
            mounts = await self._snapshots.prepare(key, layer.parent, labels)
            await self._apply(layer, mounts)
            await self._snapshots.commit(layer.chain_id, key, labels)
        except BaseException:
            await self._discard(key)
            raise
        await self._content.label(layer.descriptor.digest, {_UNCOMPRESSED_LABEL: layer.diff_id})

    async def _apply(self, layer: Layer, mounts: Iterable[mount_pb2.Mount]) -> None:
        blob = layer.descriptor.digest
        diff_id = await self._diff.apply(layer.descriptor, mounts)
        if diff_id != layer.diff_id:
            raise errors.InvalidArgumentError(
                f"layer {blob} unpacks to {diff_id}, but the image's config says {layer.diff_id}"
            )

    async def _discard(self, key: str) -> None:
        """Remove a key that may or may not have come to be."""
        try:
            await self._snapshots.remove(key)
        except errors.NotFoundError:
            pass
        except errors.NixsnapError as error:
            _log.warning("snapshot %r stays until its lease ends: %s", key, error)

    async def _keep(self, layer: Layer) -> bool:
        """Put a layer's snapshot under the lease; tell whether it is there."""
        await self._leases.keep_snapshot(self._lease, self._snapshots.snapshotter, layer.chain_id)
        return await _exists(self._snapshots, layer.chain_id)


async def _exists(snapshots: Snapshots, name: str) -> bool:
    try:
        await snapshots.stat(name)
    except errors.NotFoundError:
        return False
    return True
