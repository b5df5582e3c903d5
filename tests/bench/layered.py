"""An ordinary image of a closure: its files in a layer, as one would ship it without nixsnap."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

from lab import Closure

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MEDIA = "application/vnd.oci.image"


def build_layered_image(closure: Closure, archive: Path, *, reference: str) -> Path:
    """Write a one-layer OCI archive that holds the closure's files, for `ctr image import`; return its path."""
    layer = _layer(closure)
    packed = gzip.compress(layer, compresslevel=1, mtime=0)
    config = _json(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Env": [f"PATH={closure.top}/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor(f"{_MEDIA}.config.v1+json", config),
            "layers": [_descriptor(f"{_MEDIA}.layer.v1.tar+gzip", packed)],
        }
    )
    listed = _descriptor(f"{_MEDIA}.manifest.v1+json", manifest)
    listed["annotations"] = {"io.containerd.image.name": reference}
    files = {f"blobs/{_digest(blob).replace(':', '/')}": blob for blob in (packed, config, manifest)}
    files["index.json"] = _json({"schemaVersion": 2, "manifests": [listed]})
    files["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def _layer(closure: Closure) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for directory in ("nix", "nix/store"):
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for path in closure.paths:
            tar.add(path, path.lstrip("/"))
    return buffer.getvalue()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()
