"""`docker save` archives in OCI's terms: a manifest for each entry of manifest.json, and an index of them.

The layout has changed over the years and differs between writers: configs are `<hex>.json` or blobs; layers
are `<id>/layer.tar`, `<hex>.tar` or blobs, may be compressed, and `docker save` of old made a layer that
two images share a symbolic link from one to the other. manifest.json is what they all have (nixpkgs'
dockerTools too), and it names files; the digests are ours to compute.
"""

from __future__ import annotations

import os
from typing import Any

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import digests, document, mediatypes
from nixsnap.image.blobs import open_extent
from nixsnap.image.compression import PEEK, detect
from nixsnap.image.oci import IMAGE_NAME, REF_NAME, Descriptor, ImageConfig, Index, Manifest
from nixsnap.image.reference import Reference, layout_ref_name
from nixsnap.image.tarindex import Extent, TarIndex
from nixsnap.nix.storepath import shorten


def as_layout(fd: int, files: TarIndex, listing: bytes, what: str) -> tuple[bytes, dict[str, Extent | bytes]]:
    """Make the index and the manifests that an OCI layout of the same images would have.

    Args:
        fd: The archive.
        files: What it holds.
        listing: The content of manifest.json.
        what: The archive's name, for messages.

    Returns:
        The index as JSON, and the blobs by digest.

    Raises:
        InvalidArgumentError: manifest.json or a config is malformed, a file that it names is missing, or a
            layer is not what its config says.
    """
    converter = _Converter(fd, files, what)
    where = f"{what}: manifest.json"
    manifests = [
        descriptor
        for number, entry in enumerate(document.sequence(document.parse(listing, where), where))
        for descriptor in converter.convert(entry, f"{where}[{number}]")
    ]
    index = document.serialise(Index(manifests=tuple(manifests)).to_json())
    return index, converter.blobs


class _Converter:
    def __init__(self, fd: int, files: TarIndex, what: str) -> None:
        self.blobs: dict[str, Extent | bytes] = {}
        self._fd = fd
        self._files = files
        self._what = what
        self._layers: dict[Extent, Descriptor] = {}
        self._configs: dict[Extent, tuple[ImageConfig, Descriptor]] = {}

    def convert(self, entry: Any, where: str) -> list[Descriptor]:
        """Convert one image; a descriptor for each of its names, or one if it has none."""
        fields = document.mapping(entry, where)
        names: tuple[str, ...] = document.field(fields, "RepoTags", where, document.texts, default=())
        config, config_descriptor = self._read_config(document.field(fields, "Config", where, document.text))
        layer_names: tuple[str, ...] = document.field(fields, "Layers", where, document.texts, default=())
        if len(layer_names) != len(config.diff_ids):
            counts = f"{len(layer_names)} layers, and its config {len(config.diff_ids)} diff IDs"
            raise InvalidArgumentError(f"{where} has {counts}")
        layers = map(self._read_layer, layer_names, config.diff_ids)
        manifest = Manifest(config=config_descriptor, layers=tuple(layers))
        raw = document.serialise(manifest.to_json())
        return [
            Descriptor(
                media_type=mediatypes.OCI_MANIFEST,
                digest=self._keep(raw),
                size=len(raw),
                platform=config.platform,
                annotations=annotations,
            )
            for annotations in [_annotations(name) for name in names] or [{}]
        ]

    def _keep(self, raw: bytes) -> str:
        digest = digests.of_bytes(raw)
        self.blobs[digest] = raw
        return digest

    def _read_config(self, name: str) -> tuple[ImageConfig, Descriptor]:
        extent = self._find(name, "config")
        if extent not in self._configs:
            self._configs[extent] = self._parse_config(extent, f"{self._what}: {shorten(name)}")
        return self._configs[extent]

    def _parse_config(self, extent: Extent, where: str) -> tuple[ImageConfig, Descriptor]:
        document.check_length(extent.size, where)
        raw = os.pread(self._fd, extent.size, extent.offset)
        config = ImageConfig.from_json(document.parse(raw, where), where)
        digest = self._keep(raw)
        return config, Descriptor(media_type=mediatypes.OCI_CONFIG, digest=digest, size=len(raw))

    def _read_layer(self, name: str, diff_id: str) -> Descriptor:
        """Describe a layer; where it is not compressed its digest must be its diff ID."""
        extent = self._find(name, "layer")
        if extent not in self._layers:
            self._layers[extent] = self._describe(extent)
        descriptor = self._layers[extent]
        plain = descriptor.media_type == mediatypes.OCI_LAYER
        if plain and descriptor.digest != diff_id and diff_id.startswith("sha256:"):
            where = f"{self._what}: the layer {shorten(name)}"
            raise InvalidArgumentError(
                f"{where} has the digest {descriptor.digest}; its config says {diff_id}"
            )
        return descriptor

    def _describe(self, extent: Extent) -> Descriptor:
        compression = detect(os.pread(self._fd, min(PEEK, extent.size), extent.offset))
        with open_extent(self._fd, extent) as stream:
            digest = digests.of_stream(stream)
        self.blobs[digest] = extent
        media_type = mediatypes.oci_layer(mediatypes.DOCKER_LAYER, compression)
        return Descriptor(media_type=media_type, digest=digest, size=extent.size)

    def _find(self, name: str, kind: str) -> Extent:
        extent = self._files.find(name)
        if extent is None:
            raise InvalidArgumentError(
                f"{self._what} lacks the {kind} {shorten(name)} that manifest.json names"
            )
        return extent


def _annotations(name: str) -> dict[str, str]:
    """Name an image as containerd's importer does: in normalised form."""
    normalised = str(Reference.parse(name))
    return {IMAGE_NAME: normalised, REF_NAME: layout_ref_name(normalised)}
