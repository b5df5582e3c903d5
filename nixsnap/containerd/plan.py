"""What loading an archive will store, worked out and checked before anything is stored."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import attrs

from nixsnap.containerd.content import Blob
from nixsnap.containerd.unpack import LABEL_BYTES_MAX, Layer, inherited_labels, stack
from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image import document, mediatypes
from nixsnap.image.archive import ImageArchive
from nixsnap.image.oci import IMAGE_NAME, REF_NAME, Descriptor, Index
from nixsnap.image.platform import Platform
from nixsnap.image.reference import Reference
from nixsnap.nix.storepath import shorten

NAME_LENGTH_MAX = 1024
"""Longest image name that is taken from an archive: references end at 255 characters, a tag and a digest."""

_GC_CONTENT = "containerd.io/gc.ref.content"


@attrs.frozen(kw_only=True)
class PlannedImage:
    """One image record to be.

    Attributes:
        name: The record's name.
        target: What it points to: a manifest, or an index.
        config: The blob that identifies the image for the platform.
        layers: Those of the platform's manifest, lowest first.
    """

    name: str
    target: Descriptor
    config: Descriptor
    layers: tuple[Layer, ...]


@attrs.frozen(kw_only=True)
class Plan:
    """What an archive comes to for one platform.

    Attributes:
        images: At least one.
        blobs: Each once, and before the documents that name it, with the labels that keep what it names.
    """

    images: tuple[PlannedImage, ...]
    blobs: tuple[Blob, ...]


def plan(archive: ImageArchive, *, platform: Platform, ref: str | None, prefix: str) -> Plan:
    """Choose the images of an archive and verify every blob of theirs.

    Args:
        archive: The archive; it must stay open while the plan's blobs are being stored.
        platform: Which image of an index.
        ref: A reference to give the archive's only image in place of its own names.
        prefix: What to call images of which the archive says no more than a tag; empty refuses those.

    Raises:
        InvalidArgumentError: The archive is damaged or lies, names no image, or `ref` is no reference.
        NotFoundError: There is no image for the platform.
    """
    chosen = _choose(archive, platform, ref, prefix)
    images: list[PlannedImage] = []
    blobs: dict[str, Blob] = {}
    for name, target in chosen.items():
        verified = archive.verify(target, platform)
        images.append(_plan_image(archive, name, target, platform, {blob.digest for blob in verified}))
        for blob in _plan_blobs(archive, verified):
            known = blobs.get(blob.digest)
            # Two indexes may name one manifest; each says the same of what lies below it.
            blobs[blob.digest] = attrs.evolve(blob, labels={**known.labels, **blob.labels}) if known else blob
    return Plan(images=tuple(images), blobs=tuple(blobs.values()))


def _choose(archive: ImageArchive, platform: Platform, ref: str | None, prefix: str) -> dict[str, Descriptor]:
    """Name the archive's images."""
    if ref is not None:
        return {str(Reference.parse(ref)): _only(archive, archive.index.manifests, platform)}
    named: dict[str, list[Descriptor]] = {}
    for descriptor in archive.index.manifests:
        name = _name(descriptor.annotations, prefix)
        if name is not None:
            named.setdefault(_check_name(archive, name), []).append(descriptor)
    if not named:
        raise InvalidArgumentError(
            f"{archive.what} does not name its image", hint="give it a name with --ref"
        )
    return {name: _only(archive, descriptors, platform) for name, descriptors in named.items()}


def _name(annotations: Mapping[str, str], prefix: str) -> str | None:
    """What an image is called, by the rules of `ctr image import` (containerd, client/import.go)."""
    if name := annotations.get(IMAGE_NAME):
        return name
    name = annotations.get(REF_NAME)
    if not name or any(mark in name for mark in "/:@"):
        return name or None
    return f"{prefix}:{name}" if prefix else None


def _check_name(archive: ImageArchive, name: str) -> str:
    """Take any name that containerd would, `nix:0/…` ones with capitals too, if it can be shown and typed."""
    if len(name) > NAME_LENGTH_MAX or not name.isprintable() or " " in name:
        raise InvalidArgumentError(f"{archive.what}: {shorten(name)} is not an image name")
    return name


def _only(archive: ImageArchive, descriptors: Iterable[Descriptor], platform: Platform) -> Descriptor:
    """Return the one image among `descriptors`, or the one of them that runs on the platform."""
    distinct = {descriptor.digest: descriptor for descriptor in descriptors}
    if len(distinct) > 1:
        distinct = {key: found for key, found in distinct.items() if _runs(archive, found, platform)}
    if len(distinct) != 1:
        count = str(len(distinct)) if distinct else "none"
        raise InvalidArgumentError(
            f"{archive.what} should hold one image for {platform} there, but has {count}"
        )
    return next(iter(distinct.values()))


def _runs(archive: ImageArchive, descriptor: Descriptor, platform: Platform) -> bool:
    try:
        archive.select(descriptor, platform)
    except NotFoundError:
        return False
    return True


def _plan_image(
    archive: ImageArchive, name: str, target: Descriptor, platform: Platform, verified: set[str]
) -> PlannedImage:
    manifest = archive.manifest(archive.select(target, platform))
    for layer in manifest.layers:
        if layer.digest not in verified:
            raise InvalidArgumentError(f"{archive.what} lacks the layer {layer.digest} of {name}")
        _check_labels(archive, layer)
    layers = stack(manifest.layers, archive.config(manifest).diff_ids)
    return PlannedImage(name=name, target=target, config=manifest.config, layers=layers)


def _check_labels(archive: ImageArchive, layer: Descriptor) -> None:
    """Refuse annotations that containerd would refuse as labels, halfway through."""
    for name, value in inherited_labels(layer.annotations).items():
        length = len(name.encode()) + len(value.encode())
        if length > LABEL_BYTES_MAX:
            raise InvalidArgumentError(
                f"{archive.what}: annotation {shorten(name)} of {layer.digest} has {length} bytes with its name; "
                f"containerd's labels end at {LABEL_BYTES_MAX}"
            )


def _plan_blobs(archive: ImageArchive, verified: list[Descriptor]) -> list[Blob]:
    present = {descriptor.digest for descriptor in verified}
    return [
        Blob(
            digest=descriptor.digest,
            size_bytes=descriptor.size,
            open=functools.partial(archive.open_blob, descriptor.digest),
            labels=_gc_labels(archive, descriptor, present),
        )
        for descriptor in verified
    ]


def _gc_labels(archive: ImageArchive, descriptor: Descriptor, present: set[str]) -> dict[str, str]:
    """Return the labels by which a document keeps what it names (containerd, core/images/mediatypes.go).

    A child's label has its place in the document, so that loads for different platforms do not overwrite each other's.
    """
    if mediatypes.is_index(descriptor.media_type):
        where = f"{archive.what}: {descriptor.digest}"
        index = Index.from_json(document.parse(archive.read_document(descriptor), where), where)
        return _numbered("m", index.manifests, present)
    if mediatypes.is_manifest(descriptor.media_type):
        manifest = archive.manifest(descriptor)
        config = {f"{_GC_CONTENT}.config": manifest.config.digest}
        return config | _numbered("l", manifest.layers, present)
    return {}


def _numbered(kind: str, children: Iterable[Descriptor], present: set[str]) -> dict[str, str]:
    return {
        f"{_GC_CONTENT}.{kind}.{place}": child.digest
        for place, child in enumerate(children)
        if child.digest in present
    }
