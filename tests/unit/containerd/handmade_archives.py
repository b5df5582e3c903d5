"""Small image archives made by hand, with every part open to tampering."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nixsnap.image.platform import Platform

NAME = "io.containerd.image.name"
REF = "org.opencontainers.image.ref.name"
OCI = "application/vnd.oci.image"


def digest_of(data: bytes) -> str:
    """The SHA-256 digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer_tar(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed layer of plain files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class ArchiveBuilder:
    """Collects blobs and the index's entries, and writes them as an OCI layout."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.entries: list[dict[str, Any]] = []
        self.diff_ids: dict[str, str] = {}
        """By layer blob's digest."""

    def blob(self, data: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
        """Add a blob and return its descriptor."""
        self.blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **fields}

    def layer(self, files: Mapping[str, bytes], **annotations: str) -> dict[str, Any]:
        """Add a gzipped layer and return its descriptor."""
        tar = layer_tar(files)
        descriptor = self.blob(gzip.compress(tar, mtime=0), f"{OCI}.layer.v1.tar+gzip")
        self.diff_ids[descriptor["digest"]] = digest_of(tar)
        return {**descriptor, "annotations": annotations} if annotations else descriptor

    def manifest(
        self,
        layers: Sequence[dict[str, Any]],
        *,
        platform: str | None = None,
        config: Mapping[str, Any] | None = None,
        diff_ids: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Add an image's config and manifest and return the manifest's descriptor."""
        which = Platform.parse(platform) if platform else Platform.host()
        document = {
            **which.to_json(),
            "config": config or {},
            "rootfs": {
                "type": "layers",
                "diff_ids": diff_ids or [self.diff_ids[each["digest"]] for each in layers],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.blob(json.dumps(document).encode(), f"{OCI}.config.v1+json"),
            "layers": list(layers),
        }
        return self.blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")

    def index(self, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Add an index and return its descriptor."""
        document = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": list(manifests)}
        return self.blob(json.dumps(document).encode(), f"{OCI}.index.v1+json")

    def entry(self, descriptor: dict[str, Any], annotations: Mapping[str, str]) -> None:
        """List an image in index.json."""
        self.entries.append({**descriptor, "annotations": dict(annotations)})

    def named(self, descriptor: dict[str, Any], name: str) -> None:
        """List an image in index.json under a full name."""
        self.entry(descriptor, {NAME: name})

    def write(self, path: Path) -> Path:
        """Write the archive."""
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": self.entries}
        files = {f"blobs/sha256/{digest.partition(':')[2]}": data for digest, data in self.blobs.items()}
        files |= {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
        path.write_bytes(layer_tar(files))
        return path


def small_image(path: Path, *, name: str = "lab.invalid/small:1", text: bytes = b"hello\n") -> ArchiveBuilder:
    """Write an archive of one image with two layers, the upper one annotated as a nix layer; return its builder."""
    builder = ArchiveBuilder()
    lower = builder.layer({"hello.txt": text})
    upper = builder.layer(
        {"world.txt": text}, **{"containerd.io/snapshot/test": "yes", "org.example/other": "no"}
    )
    builder.named(builder.manifest([lower, upper]), name)
    builder.write(path)
    return builder
