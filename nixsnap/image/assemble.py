"""The documents of a new image: its config and its manifest, from what it consists of. Nothing is read or written."""

from __future__ import annotations

from typing import Any, Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import digests, document, mediatypes
from nixsnap.image.base import BaseImage
from nixsnap.image.layer import Layer
from nixsnap.image.oci import Descriptor, ImageConfig, Manifest
from nixsnap.image.platform import Platform
from nixsnap.image.runconfig import RunConfig, inherit

EPOCH: Final = "1970-01-01T00:00:00Z"
_HISTORY: Final[dict[str, Any]] = {
    "created": EPOCH,
    "created_by": "nix2container build",
    "comment": "nix layer",
}


@attrs.frozen(kw_only=True)
class Image:
    """An image but for its layers' content.

    Args:
        manifest: What it consists of.
        descriptor: The manifest's own, with the platform.
        documents: The config's and the manifest's bytes, by digest.
    """

    manifest: Manifest
    descriptor: Descriptor
    documents: dict[str, bytes]


def assemble(
    *,
    platform: Platform,
    run_config: RunConfig,
    base: BaseImage | None,
    layer: Layer,
    annotations: dict[str, str],
) -> Image:
    """Put a nix layer on a base image, or on nothing.

    Args:
        platform: What the image runs on; the base's version of the operating system is taken over.
        run_config: The image's own.
        base: What it is built on.
        layer: The nix layer.
        annotations: The nix layer's.

    Raises:
        InvalidArgumentError: The manifest would be longer than anything reads.
    """
    config = _config(platform, run_config, base, layer.diff_id)
    config_raw = document.serialise(config.to_json(created=EPOCH))
    nix_layer = Descriptor(
        media_type=mediatypes.OCI_LAYER_GZIP, digest=layer.digest, size=layer.size, annotations=annotations
    )
    manifest = Manifest(
        config=_describe(mediatypes.OCI_CONFIG, config_raw),
        layers=(*(base.layers if base else ()), nix_layer),
    )
    manifest_raw = document.serialise(manifest.to_json())
    descriptor = attrs.evolve(_describe(mediatypes.OCI_MANIFEST, manifest_raw), platform=config.platform)
    if descriptor.size > document.MAX_DOCUMENT:
        raise InvalidArgumentError(
            f"the manifest would have {descriptor.size} bytes; at most {document.MAX_DOCUMENT} are read",
            hint="annotations of the closure form are short, however many paths there are",
        )
    documents = {manifest.config.digest: config_raw, descriptor.digest: manifest_raw}
    return Image(manifest=manifest, descriptor=descriptor, documents=documents)


def _config(platform: Platform, run_config: RunConfig, base: BaseImage | None, diff_id: str) -> ImageConfig:
    if base is None:
        return ImageConfig(platform=platform, config=run_config, diff_ids=(diff_id,), history=(_HISTORY,))
    if base.config.platform is not None:
        lower = base.config.platform
        platform = attrs.evolve(platform, os_version=lower.os_version, os_features=lower.os_features)
    return ImageConfig(
        platform=platform,
        config=inherit(base.config.config, run_config),
        diff_ids=(*base.config.diff_ids, diff_id),
        history=(*base.config.history, _HISTORY),
    )


def _describe(media_type: str, raw: bytes) -> Descriptor:
    return Descriptor(media_type=media_type, digest=digests.of_bytes(raw), size=len(raw))
