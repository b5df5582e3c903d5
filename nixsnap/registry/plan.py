"""What to push: one image, or one index for images of several platforms, all verified before anything is sent."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import digests, document, mediatypes
from nixsnap.image.archive import MAX_INDEX_DEPTH, ImageArchive
from nixsnap.image.oci import IMAGE_NAME, Descriptor, Index
from nixsnap.image.platform import Platform
from nixsnap.image.reference import NIX_PREFIX, Reference
from nixsnap.registry.upload import Blob

# containerd's label for where it has a blob from, which clients copy to annotations (its labels/labels.go).
_SOURCE: Final = "containerd.io/distribution.source."

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Document:
    """A manifest or an index, as it is stored under its digest."""

    digest: str
    media_type: str
    raw: bytes


@attrs.frozen(kw_only=True)
class Plan:
    """What to push, in this order.

    Attributes:
        blobs: Each once.
        documents: Each once and after those that it names; the last is the one to tag.
    """

    blobs: tuple[Blob, ...]
    documents: tuple[Document, ...]

    @property
    def digest(self) -> str:
        """Of what is tagged."""
        return self.documents[-1].digest


@attrs.frozen(kw_only=True)
class _Image:
    """A manifest in one of the archives."""

    archive: ImageArchive
    descriptor: Descriptor
    platform: Platform | None


def plan(archives: Sequence[ImageArchive], reference: Reference, *, mount_from: Sequence[str] = ()) -> Plan:
    """Work out what to push.

    One image is pushed as it is, and so is an index that its archive has all of. Otherwise an index is made of all the
    images that there are, each of which must then be for another platform.

    Args:
        archives: To stay open while the plan's blobs are being pushed.
        reference: Where to push to; a digest in it must be that of what is pushed.
        mount_from: Repositories of the same registry that may have some of the blobs.

    Raises:
        InvalidArgumentError: The reference is of no registry, an archive is damaged or lies, there is no image, or
            there are several for one platform.
    """
    if reference.domain == NIX_PREFIX:
        raise InvalidArgumentError(
            f"{reference} names a store path, not a place in a registry", hint="push to host/name:tag"
        )
    gathered = _gather(archives)
    if reference.digest not in {"", gathered.documents[-1].digest}:
        raise InvalidArgumentError(
            f"{reference} was asked for, but what would be pushed has the digest {gathered.digest}"
        )
    blobs = (_with_source(blob, archives, reference, mount_from) for blob in gathered.blobs)
    return attrs.evolve(gathered, blobs=tuple(blobs))


def _gather(archives: Sequence[ImageArchive]) -> Plan:
    tops = {
        descriptor.digest: (archive, descriptor)
        for archive in archives
        for descriptor in archive.index.manifests
    }
    if len(tops) == 1:
        archive, top = next(iter(tops.values()))
        below: dict[str, Descriptor] = {}
        if _has_whole(archive, top, below):
            return _collect([(archive, each) for each in below.values()])
    images = _images(tops.values())
    if not images:
        raise InvalidArgumentError(f"{_names(archives)} has no image that could be pushed")
    found = _collect([(image.archive, image.descriptor) for image in images])
    if len(images) == 1:
        return found
    return attrs.evolve(found, documents=(*found.documents, _make_index(images)))


def _has_whole(
    archive: ImageArchive, descriptor: Descriptor, below: dict[str, Descriptor], *, depth: int = 0
) -> bool:
    """Whether an archive has all manifests that a descriptor leads to.

    They are added to `below`, attestations and further indexes too, each once and before the index that names it.
    """
    if descriptor.digest in below:
        return True
    if descriptor.digest not in archive or depth > MAX_INDEX_DEPTH:
        return False
    if mediatypes.is_index(descriptor.media_type):
        where = f"{archive.what}: {descriptor.digest}"
        index = Index.from_json(document.parse(archive.read_document(descriptor), where), where)
        if not all(_has_whole(archive, child, below, depth=depth + 1) for child in index.manifests):
            return False
    elif not mediatypes.is_manifest(descriptor.media_type):
        return False
    below[descriptor.digest] = descriptor
    return True


def _images(tops: Iterable[tuple[ImageArchive, Descriptor]]) -> list[_Image]:
    """List the images that the archives have, each once."""
    images: dict[str, _Image] = {}
    for archive, top in tops:
        for candidate in archive.candidates(top):
            # `ctr image export --platform` names every platform and brings the blobs of one.
            if candidate.descriptor.digest in archive:
                images[candidate.descriptor.digest] = _Image(
                    archive=archive, descriptor=candidate.descriptor, platform=candidate.platform
                )
    return list(images.values())


def _collect(manifests: Sequence[tuple[ImageArchive, Descriptor]]) -> Plan:
    """Verify manifests and all that they consist of, and list it."""
    blobs: dict[str, Blob] = {}
    documents: dict[str, Document] = {}
    for archive, descriptor in manifests:
        if mediatypes.is_index(descriptor.media_type):
            documents[descriptor.digest] = _read(archive, descriptor)
            continue
        *parts, manifest = archive.verify(descriptor)
        documents[manifest.digest] = _read(archive, manifest)
        for part in parts:
            blobs.setdefault(part.digest, _blob(archive, part))
    return Plan(blobs=tuple(blobs.values()), documents=tuple(documents.values()))


def _read(archive: ImageArchive, descriptor: Descriptor) -> Document:
    return Document(
        digest=descriptor.digest, media_type=descriptor.media_type, raw=archive.read_document(descriptor)
    )


def _blob(archive: ImageArchive, descriptor: Descriptor) -> Blob:
    return Blob(
        digest=descriptor.digest,
        size_bytes=descriptor.size,
        open=functools.partial(archive.open_blob, descriptor.digest),
    )


def _make_index(images: Sequence[_Image]) -> Document:
    by_platform: dict[Platform, _Image] = {}
    for image in images:
        platform, what = image.platform, image.archive.what
        if platform is None:
            raise InvalidArgumentError(
                f"{what}: {image.descriptor.digest} does not say what platform it is for, "
                "so it cannot be one of several"
            )
        other = by_platform.setdefault(platform, image)
        if other is not image:
            raise InvalidArgumentError(
                f"{_names([other.archive, image.archive])} has two images for {platform}: "
                f"{other.descriptor.digest} and {image.descriptor.digest}",
                hint="an index has one for each platform; push them under names of their own",
            )
    manifests = tuple(
        Descriptor(
            media_type=image.descriptor.media_type,
            digest=image.descriptor.digest,
            size=image.descriptor.size,
            platform=platform,
        )
        for platform, image in by_platform.items()
    )
    raw = document.serialise(Index(manifests=manifests).to_json())
    _log.debug("made an index of %s", ", ".join(map(str, by_platform)))
    return Document(digest=digests.of_bytes(raw), media_type=mediatypes.OCI_INDEX, raw=raw)


def _names(archives: Iterable[ImageArchive]) -> str:
    return " with ".join(dict.fromkeys(archive.what for archive in archives))


def _with_source(
    blob: Blob, archives: Iterable[ImageArchive], reference: Reference, mount_from: Sequence[str]
) -> Blob:
    """Add the repository from which the registry may take the blob: the one whose name is most like ours."""
    known = mount_from or [name for archive in archives for name in _sources(archive, reference.domain)]
    others = [name for name in known if name != reference.path]
    if not others:
        return blob
    return attrs.evolve(blob, mount_from=max(others, key=lambda name: _likeness(name, reference.path)))


def _sources(archive: ImageArchive, domain: str) -> Iterator[str]:
    """Yield the repositories of a registry that an archive's annotations name."""
    for descriptor in archive.index.manifests:
        names = [f"{domain}/{name}" for name in descriptor.annotations.get(_SOURCE + domain, "").split(",")]
        for name in (*names, descriptor.annotations.get(IMAGE_NAME, "")):
            try:
                reference = Reference.parse(name)
            except InvalidArgumentError:
                continue
            if reference.domain == domain:
                yield reference.path


def _likeness(name: str, other: str) -> int:
    """How many components two repository names begin with in common."""
    pairs = zip(name.split("/"), other.split("/"), strict=False)
    return next((place for place, (mine, yours) in enumerate(pairs) if mine != yours), len(name))
