"""The base image that an image is built on."""

from __future__ import annotations

from typing import Any, Final

import attrs

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image import mediatypes
from nixsnap.image.archive import Candidate, ImageArchive, offered
from nixsnap.image.compression import PEEK, detect
from nixsnap.image.oci import IMAGE_NAME, Descriptor, ImageConfig
from nixsnap.image.platform import Platform

_EPOCH: Final = "1970-01-01T00:00:00Z"


@attrs.frozen(kw_only=True)
class BaseImage:
    """What the new image starts from.

    Args:
        archive: Where the layers' blobs are; not verified yet.
        config: The base's own.
        layers: Lowest first, with OCI's media types; blobs and annotations are the base's.
    """

    archive: ImageArchive
    config: ImageConfig
    layers: tuple[Descriptor, ...]


def open_base(archive: ImageArchive, platform: Platform) -> BaseImage:
    """Find the image for a platform in an archive.

    Raises:
        NotFoundError: It has none; the message names what it has. InvalidArgumentError: It has several
            different ones, a layer that is not in the archive, or a malformed document.
    """
    manifest = archive.manifest(_choose(archive, platform))
    config = archive.config(manifest)
    config = attrs.evolve(config, history=_complete_history(config))
    layers = tuple(_as_oci(archive, layer) for layer in manifest.layers)
    return BaseImage(archive=archive, config=config, layers=layers)


def _choose(archive: ImageArchive, platform: Platform) -> Descriptor:
    """Find the one image whose architecture is the platform's, and whose variant is the nearest that runs there."""
    candidates: dict[str, Candidate] = {}
    names: dict[str, list[str]] = {}
    for descriptor in archive.index.manifests:
        for candidate in archive.candidates(descriptor):
            candidates[candidate.descriptor.digest] = candidate
            name = descriptor.annotations.get(IMAGE_NAME, candidate.descriptor.digest)
            names.setdefault(candidate.descriptor.digest, []).append(name)
    ranked = [(rank, each) for each in candidates.values() if (rank := _rank(each, platform)) is not None]
    if not ranked:
        found = offered(list(candidates.values()))
        raise NotFoundError(f"base image {archive.what} is not for {platform}: it has {found}")
    best = min(rank for rank, _ in ranked)
    chosen = [each.descriptor for rank, each in ranked if rank == best]
    if len(chosen) > 1:
        several = ", ".join(" or ".join(names[each.digest]) for each in chosen)
        raise InvalidArgumentError(f"base image {archive.what} has several images for {platform}: {several}")
    return chosen[0]


def _rank(candidate: Candidate, platform: Platform) -> int | None:
    """Rank as `Candidate.rank`, but 386 is no base for amd64: only the variant may be a lower one."""
    if candidate.platform is not None and candidate.platform.architecture != platform.architecture:
        return None
    return candidate.rank(platform)


def _as_oci(archive: ImageArchive, layer: Descriptor) -> Descriptor:
    """Describe a base's layer in an OCI manifest; its blob stays as it is."""
    size = archive.blob_size(layer.digest)
    if size != layer.size:
        sizes = f"{size} bytes; its descriptor says {layer.size}"
        raise InvalidArgumentError(f"base image {archive.what}: the layer {layer.digest} has {sizes}")
    with archive.open_blob(layer.digest) as stream:
        compression = detect(stream.read(PEEK))
    return attrs.evolve(layer, media_type=mediatypes.oci_layer(layer.media_type, compression), platform=None)


def _complete_history(config: ImageConfig) -> tuple[dict[str, Any], ...]:
    """Give every layer an entry: Docker pairs them up, and some builders leave history out."""
    with_layers = sum(1 for entry in config.history if not entry.get("empty_layer"))
    if with_layers == len(config.diff_ids):
        return config.history
    return tuple({"created": _EPOCH, "comment": "base image"} for _ in config.diff_ids)
