"""Images and archives to test with, written with the standard library so that they owe nothing to our own writer."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image"
OCI_LAYER = f"{OCI}.layer.v1.tar"
NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
DIGEST = "b6gvzjyb2pg0kjfwrjmg1vfhh54ad73z"


class FakeStore:
    """A store directory of the test's own; paths get digests of their own, in the order they are added."""

    def __init__(self, directory: Path) -> None:
        self.dir = str(directory)
        self.path = directory
        directory.mkdir()
        self._count = 0

    def name(self, name: str) -> str:
        self._count += 1
        return f"{self._count:032}-{name}"

    def add(self, name: str, content: Any) -> str:
        """Add a store path: a dict is a directory, a string a file, a Path what a link leads to."""
        path = self.path / self.name(name)
        _place(path, content)
        return str(path)

    def add_closure_info(self, paths: list[str]) -> str:
        return self.add("closure-info", {"store-paths": "".join(f"{path}\n" for path in paths)})


def _place(path: Path, content: Any) -> None:
    if isinstance(content, dict):
        path.mkdir()
        for name, inner in content.items():
            _place(path / name, inner)
    elif isinstance(content, Path):
        path.symlink_to(content)
    else:
        path.write_text(content)


def sha256(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(entries: list[tuple[str | tarfile.TarInfo, bytes]], *, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of regular files, or of whatever the TarInfo says."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for name, content in entries:
            info = member(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def link(name: str, target: str, *, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target), b""


def layer(**files: str) -> bytes:
    """An uncompressed layer."""
    return tar([(name, content.encode()) for name, content in files.items()])


def config_of(layers: list[bytes], *, config: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """An image config for layers, each compressed with gzip or not at all."""
    plain = [gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw for raw in layers]
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(raw) for raw in plain]},
        **fields,
    }


def docker_archive(images: list[dict[str, Any]]) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    """The entries of a `docker save`; an image has `config`, `layers` and `tags`."""
    entries: dict[str, bytes] = {}
    listing = []
    for image in images:
        config = json.dumps(image["config"]).encode()
        config_name = f"{sha256(config)[7:]}.json"
        names = [f"{sha256(raw)[7:]}/layer.tar" for raw in image["layers"]]
        entries |= {config_name: config, **dict(zip(names, image["layers"], strict=True))}
        listing.append({"Config": config_name, "RepoTags": image.get("tags"), "Layers": names})
    return [*entries.items(), ("manifest.json", json.dumps(listing).encode())]


class Layout:
    """An OCI layout in the making."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, raw: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
        """Keep a blob, and describe it."""
        self.blobs[sha256(raw)] = raw
        return {"mediaType": media_type, "digest": sha256(raw), "size": len(raw), **fields}

    def document(self, value: Any, media_type: str, **fields: Any) -> dict[str, Any]:
        return self.blob(json.dumps(value).encode(), media_type, **fields)

    def image(
        self,
        config: dict[str, Any],
        layers: list[dict[str, Any]],
        *,
        media_type: str = f"{OCI}.manifest.v1+json",
        **fields: Any,
    ) -> dict[str, Any]:
        """Keep an image's config and manifest, and describe the manifest."""
        config_type = f"{OCI}.config.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self.document(config, config_type),
            "layers": layers,
        }
        return self.document(manifest, media_type, **fields)

    def simple(
        self, *layers: bytes, name: str = "", config: dict[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Keep an image of gzip or plain layers and list it in the index."""
        described = [
            self.blob(raw, f"{OCI_LAYER}+gzip" if raw[:2] == b"\x1f\x8b" else OCI_LAYER) for raw in layers
        ]
        if name:
            fields["annotations"] = {NAMES[0]: name, NAMES[1]: name.rpartition(":")[2]}
        descriptor = self.image(config or config_of(list(layers)), described, **fields)
        self.manifests.append(descriptor)
        return descriptor

    def entries(self) -> list[tuple[str | tarfile.TarInfo, bytes]]:
        index = {"schemaVersion": 2, "manifests": self.manifests}
        blobs = [(f"blobs/{digest.replace(':', '/')}", raw) for digest, raw in self.blobs.items()]
        return [
            ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
            ("index.json", json.dumps(index).encode()),
            *blobs,
        ]

    def write(self, path: Path) -> str:
        path.write_bytes(tar(self.entries()))
        return str(path)
