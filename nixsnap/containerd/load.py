"""Loads an image archive into containerd: verified, stored, unpacked, and named, in that order."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import attrs

from nixsnap import errors
from nixsnap.containerd.client import Client
from nixsnap.containerd.content import Blob, Content
from nixsnap.containerd.images import Image, Images
from nixsnap.containerd.leases import leased
from nixsnap.containerd.plan import Plan, PlannedImage, plan
from nixsnap.containerd.store import store
from nixsnap.containerd.unpack import gc_label, is_unpacked, unpack
from nixsnap.image.archive import ImageArchive
from nixsnap.image.oci import Descriptor
from nixsnap.image.platform import Platform

DEFAULT_SNAPSHOTTER = "nix"

_CRI_NAMESPACE = "k8s.io"
_CRI_LABELS = {"io.cri-containerd.image": "managed"}  # without it CRI would have to write the record again

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class LoadedImage:
    """An image that containerd has.

    Attributes:
        name: Its record.
        target: What that points to.
        config: The config blob's digest, which is CRI's image id.
        was_loaded: Nothing had to be done.
    """

    name: str
    target: Descriptor
    config: str
    was_loaded: bool


class Progress(Protocol):
    """Hears how a load goes on. Totals come before what counts towards them, and count what was there already."""

    def storing(self, size_bytes: int) -> None:
        """Blobs of so many bytes together will be stored."""

    def stored(self, size_bytes: int) -> None:
        """So many more bytes are stored."""

    def unpacking(self, layers: int) -> None:
        """An image of so many layers will be unpacked."""

    def unpacked(self) -> None:
        """One more layer is unpacked."""


class Silence:
    """Progress that nobody hears of."""

    def storing(self, size_bytes: int) -> None:
        """Say nothing."""

    def stored(self, size_bytes: int) -> None:
        """Say nothing."""

    def unpacking(self, layers: int) -> None:
        """Say nothing."""

    def unpacked(self) -> None:
        """Say nothing."""


SILENCE = Silence()


async def load(
    client: Client,
    archive: ImageArchive,
    *,
    snapshotter: str = DEFAULT_SNAPSHOTTER,
    platform: Platform | None = None,
    ref: str | None = None,
    prefix: str = "",
    progress: Progress = SILENCE,
) -> tuple[LoadedImage, ...]:
    """Verify an archive as a whole, in another thread, and load its images; see `plan` and `load_plan`.

    Args:
        client: Without a lease.
        archive: Stays the caller's to close.
        snapshotter: As for `load_plan`.
        platform: As for `plan`; this machine's by default.
        ref: As for `plan`.
        prefix: As for `plan`.
        progress: As for `load_plan`.

    Returns:
        The images in the archive's order.

    Raises:
        NixsnapError: As for `plan`, before anything is stored, and for `load_plan`.
    """
    planned = await asyncio.to_thread(
        plan, archive, platform=platform or Platform.host(), ref=ref, prefix=prefix
    )
    return await load_plan(client, planned, snapshotter=snapshotter, progress=progress)


async def load_plan(
    client: Client,
    planned: Plan,
    *,
    snapshotter: str = DEFAULT_SNAPSHOTTER,
    progress: Progress = SILENCE,
) -> tuple[LoadedImage, ...]:
    """Load the images of a verified archive, unless containerd has them as they would be.

    A failure leaves no image record, lease, snapshot key or ingest behind, and has containerd collect the blobs and
    snapshots that were stored.

    Args:
        client: Without a lease.
        planned: From `plan`; its archive is still open.
        snapshotter: Where to unpack, by the name that containerd's configuration gives it.
        progress: Told how it goes on.

    Returns:
        The plan's images.

    Raises:
        InvalidArgumentError: containerd has no such snapshotter, or a layer is not what the config says.
        UnavailableError: containerd or the snapshotter does not answer.
        NixsnapError: Whatever else containerd or the snapshotter says.
    """
    records = [_record(client, image) for image in planned.images]
    known = await _is_loaded(client, planned, records, snapshotter)
    if not known:
        async with leased(client) as lessee:
            progress.storing(sum(blob.size_bytes for blob in planned.blobs))
            await store(lessee, planned.blobs, stored=progress.stored)
            await _unpack(lessee, snapshotter, planned.images, progress)
            await _name(Images(lessee), records)
    return tuple(
        LoadedImage(name=image.name, target=image.target, config=image.config.digest, was_loaded=known)
        for image in planned.images
    )


def _record(client: Client, image: PlannedImage) -> Image:
    labels = _CRI_LABELS if client.namespace == _CRI_NAMESPACE else {}
    return Image(name=image.name, target=image.target, labels=labels)


async def _is_loaded(client: Client, planned: Plan, records: Iterable[Image], snapshotter: str) -> bool:
    """Tell whether loading would change nothing, by looking only.

    Raises:
        InvalidArgumentError: containerd has no such snapshotter.
    """
    unpacked = await asyncio.gather(
        *(is_unpacked(client, snapshotter, image.layers) for image in planned.images)
    )
    if not all(unpacked):
        return False
    images, content = Images(client), Content(client)
    kept = {
        image.config.digest: {gc_label(snapshotter): image.layers[-1].chain_id}
        for image in planned.images
        if image.layers
    }
    found = await asyncio.gather(
        *(_has_record(images, record) for record in records),
        *(_has_blob(content, blob, kept.get(blob.digest, {})) for blob in planned.blobs),
    )
    return all(found)


async def _has_record(images: Images, record: Image) -> bool:
    try:
        found = await images.get(record.name)
    except errors.NotFoundError:
        return False
    return _says(found, record)


def _says(found: Image, record: Image) -> bool:
    """Tell whether a record is as `record` wants it; it may have further labels."""
    return found.target.digest == record.target.digest and record.labels.items() <= found.labels.items()


async def _has_blob(content: Content, blob: Blob, labels: dict[str, str]) -> bool:
    try:
        found = await content.info(blob.digest)
    except errors.NotFoundError:
        return False
    return {**blob.labels, **labels}.items() <= found.labels.items()


async def _unpack(
    client: Client, snapshotter: str, images: Iterable[PlannedImage], progress: Progress
) -> None:
    for image in images:
        progress.unpacking(len(image.layers))
        await unpack(
            client,
            snapshotter,
            image.layers,
            config=image.config.digest,
            unpacked=lambda _layer: progress.unpacked(),
        )


async def _name(images: Images, records: Iterable[Image]) -> None:
    """Make or repoint the records, all or none."""
    undo: list[Callable[[], Awaitable[None]]] = []
    try:
        for record in records:
            undo.append(await _put(images, record))  # noqa: PERF401 - what is done counts if the next one fails
    except BaseException:
        for step in reversed(undo):
            try:
                await step()
            except errors.NixsnapError as error:
                _log.warning("could not be undone: %s", error)
        raise


async def _put(images: Images, record: Image) -> Callable[[], Awaitable[None]]:
    """Make or repoint one record; return what takes that back."""
    try:
        await images.create(record)
    except errors.AlreadyExistsError:
        before = await images.get(record.name)
        if not _says(before, record):
            await images.update(record)
        return functools.partial(images.update, before)
    return functools.partial(images.delete, record.name)
