"""OCI's documents as values: descriptor, index, manifest and image config.

What is read keeps the fields that we use. Who copies an image copies the blob's bytes, not a document
written anew, so that nothing unknown to us is lost.
"""

from __future__ import annotations

from typing import Any

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import document, mediatypes
from nixsnap.image.digests import read_digest
from nixsnap.image.platform import Platform

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
LAYOUT_VERSION = "1.0.0"


def _read_size(value: Any, where: str) -> int:
    size = document.integer(value, where)
    if size < 0:
        raise InvalidArgumentError(f"{where} is {size}, not a size")
    return size


@attrs.frozen(kw_only=True)
class Descriptor:
    """What a blob is, and how to know it.

    Args:
        media_type: Of the blob.
        digest: Well formed, see `digests`.
        size: Bytes.
        annotations: Those of this mention of the blob; containerd hands a layer's to the snapshotter.
        platform: Of a manifest named in an index.
        urls: Where a foreign layer may be had.
    """

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = attrs.field(factory=dict)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Any, where: str) -> Descriptor:
        """Read one.

        Raises:
            InvalidArgumentError: A field is missing or of another type, or there is no such digest or size.
        """
        fields = document.mapping(value, where)
        return cls(
            media_type=document.field(fields, "mediaType", where, document.text),
            digest=document.field(fields, "digest", where, read_digest),
            size=document.field(fields, "size", where, _read_size),
            annotations=document.field(fields, "annotations", where, document.text_map, default={}),
            platform=document.optional(fields, "platform", where, Platform.from_json),
            urls=document.field(fields, "urls", where, document.texts, default=()),
        )

    def to_json(self) -> dict[str, Any]:
        """Write the fields in the order of OCI's structure, annotations by name, empty ones left out."""
        fields: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.urls:
            fields["urls"] = list(self.urls)
        if self.annotations:
            fields["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform:
            fields["platform"] = self.platform.to_json()
        return fields


@attrs.frozen(kw_only=True)
class Index:
    """A list of manifests (or of further indexes)."""

    manifests: tuple[Descriptor, ...]

    @classmethod
    def from_json(cls, value: Any, where: str) -> Index:
        """Read one.

        Raises:
            InvalidArgumentError: It is no index; a manifest in an index's place is told apart.
        """
        fields = document.mapping(value, where)
        _check_kind(fields, where, foreign=("config", "layers", "fsLayers"), wanted="an index")
        return cls(
            manifests=document.field(
                fields, "manifests", where, document.sequence_of(Descriptor.from_json), default=()
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Write it."""
        return {
            "schemaVersion": 2,
            "mediaType": mediatypes.OCI_INDEX,
            "manifests": [manifest.to_json() for manifest in self.manifests],
        }


@attrs.frozen(kw_only=True)
class Manifest:
    """One image: its config and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = mediatypes.OCI_MANIFEST

    @classmethod
    def from_json(cls, value: Any, where: str) -> Manifest:
        """Read one.

        Raises:
            InvalidArgumentError: It is no manifest; an index in a manifest's place is told apart.
        """
        fields = document.mapping(value, where)
        _check_kind(fields, where, foreign=("manifests", "fsLayers"), wanted="a manifest")
        return cls(
            config=document.field(fields, "config", where, Descriptor.from_json),
            layers=document.field(
                fields, "layers", where, document.sequence_of(Descriptor.from_json), default=()
            ),
            media_type=document.field(
                fields, "mediaType", where, document.text, default=mediatypes.OCI_MANIFEST
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Write it."""
        return {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }


@attrs.frozen(kw_only=True)
class ImageConfig:
    """The config blob of an image.

    Args:
        platform: None where the config names none (Docker's oldest images).
        config: What a container of the image runs with: `Env`, `Entrypoint` and so on, as it stands.
        diff_ids: Digests of the uncompressed layers, lowest first.
        history: As it stands.
    """

    platform: Platform | None
    config: dict[str, Any] = attrs.field(factory=dict)
    diff_ids: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()

    @classmethod
    def from_json(cls, value: Any, where: str) -> ImageConfig:
        """Read one.

        Raises:
            InvalidArgumentError: A field is of another type, or a diff ID is no digest.
        """
        fields = document.mapping(value, where)
        rootfs: dict[str, Any] = document.field(fields, "rootfs", where, document.mapping, default={})
        read_digests = document.sequence_of(read_digest)
        return cls(
            platform=Platform.from_json(fields, where),
            config=document.field(fields, "config", where, document.mapping, default={}),
            diff_ids=document.field(rootfs, "diff_ids", f"{where}.rootfs", read_digests, default=()),
            history=document.field(
                fields, "history", where, document.sequence_of(document.mapping), default=()
            ),
        )

    def to_json(self, *, created: str) -> dict[str, Any]:
        """Write it, in the order of OCI's structure.

        Args:
            created: RFC 3339.
        """
        return {
            "created": created,
            **(self.platform.to_json() if self.platform else {}),
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)},
            "history": list(self.history),
        }


def _check_kind(fields: dict[str, Any], where: str, *, foreign: tuple[str, ...], wanted: str) -> None:
    """Refuse a document that is two things at once, as containerd does since CVE-2021-41190."""
    for key in foreign:
        if fields.get(key):
            raise InvalidArgumentError(f"{where} is not {wanted}: it has {key!r}")
