"""Images for the lab: Nix images by `nix2container`, and the plain image they are measured against."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lab.containerd import Containerd
from lab.daemon import installed_program
from lab.nix import Closure, write_busybox_tree
from lab.processes import run

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MEDIA = "application/vnd.oci.image"


def build_image(
    closure: Closure,
    archive: Path,
    *,
    reference: str,
    config: Mapping[str, Any] | None = None,
    copy_to_root: Sequence[str] = (),
    options: Sequence[str | Path] = (),
) -> Path:
    """Build a Nix image of the closure with `nix2container build` and return the archive's path.

    `config` is the OCI image config's inner "config"; by default PATH is the application's bin directory. The
    files of the store paths in `copy_to_root` are linked into the image's root.
    """
    inner = config if config is not None else {"Env": [f"PATH={closure.top}/bin"], "Cmd": ["sh"]}
    with tempfile.TemporaryDirectory(prefix="nixsnap-image.") as scratch:
        config_file = Path(scratch) / "config.json"
        config_file.write_text(json.dumps(inner))
        copy_file = Path(scratch) / "copy-to-root.json"
        copy_file.write_text(json.dumps(list(copy_to_root)))
        run(
            installed_program("nix2container"), "build", "--config", config_file,
            "--closure", closure.store_paths_file, "--copy-to-root", copy_file,
            "--ref", reference, *options, archive,
        )  # fmt: skip
    return archive


def load_image(
    containerd: Containerd, archive: Path, *, namespace: str | None = None, options: Sequence[str] = ()
) -> None:
    """Load a Nix image's archive into a containerd with `nix2container load`."""
    run(
        *containerd.place.argv(
            installed_program("nix2container"), "--address", containerd.address,
            "--namespace", namespace or containerd.namespace, "load", *options, archive,
        ),
        environment=containerd.place.environment,
    )  # fmt: skip


def _layer() -> bytes:
    """An uncompressed tar of a busybox tree, bin/ with every applet."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="nixsnap-image.") as scratch:
        write_busybox_tree(Path(scratch) / "root")
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(Path(scratch) / "root/bin", "bin", filter=_as_root)
    return buffer.getvalue()


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def build_plain_image(archive: Path, *, reference: str) -> Path:
    """Write a one-layer OCI archive of the same busybox, for `ctr image import`, and return its path."""
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return _write_with_layer(archive, {}, config=config, layers=[], layer=_layer(), reference=reference)


@attrs.frozen(kw_only=True)
class LayerFile:
    """A regular file of a layer."""

    content: bytes
    mode: int = 0o644
    owner: int = 0
    """Of user and group alike."""


def add_plain_layer(
    base: Path, archive: Path, *, reference: str, files: Mapping[str, str | LayerFile]
) -> Path:
    """Write the image of an OCI archive with one more ordinary layer, which holds `files`; return its path."""
    with tarfile.open(base) as tar:
        blobs = {member.name: tar.extractfile(member) for member in tar.getmembers() if member.isfile()}
        content = {name: stream.read() for name, stream in blobs.items() if stream}

    def document(digest: str) -> Any:
        return json.loads(content[f"blobs/{digest.replace(':', '/')}"])

    (listed,) = json.loads(content["index.json"])["manifests"]
    manifest = document(listed["digest"])
    config = document(manifest["config"]["digest"])
    config.pop("history", None)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, given in files.items():
            file = LayerFile(content=given.encode()) if isinstance(given, str) else given
            member = tarfile.TarInfo(name)
            member.size = len(file.content)
            member.mode = file.mode
            member.uid = member.gid = file.owner
            tar.addfile(member, io.BytesIO(file.content))
    kept = {layer["digest"] for layer in manifest["layers"]}
    blobs_kept = {name: blob for name, blob in content.items() if _digest(blob) in kept}
    return _write_with_layer(
        archive,
        blobs_kept,
        config=config,
        layers=manifest["layers"],
        layer=buffer.getvalue(),
        reference=reference,
    )


def _write_with_layer(
    archive: Path,
    blobs: Mapping[str, bytes],
    *,
    config: dict[str, Any],
    layers: list[dict[str, Any]],
    layer: bytes,
    reference: str,
) -> Path:
    """Write an OCI archive of `layers`, whose blobs are there, and `layer`, an uncompressed tar, on top."""
    packed = gzip.compress(layer, compresslevel=1, mtime=0)
    config["rootfs"]["diff_ids"].append(_digest(layer))
    config_blob = json.dumps(config).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor(f"{_MEDIA}.config.v1+json", config_blob),
            "layers": [*layers, _descriptor(f"{_MEDIA}.layer.v1.tar+gzip", packed)],
        }
    ).encode()
    listed = _descriptor(f"{_MEDIA}.manifest.v1+json", manifest)
    listed["annotations"] = {"io.containerd.image.name": reference}
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": [listed]}
    ).encode()
    files = dict(blobs)
    files |= {f"blobs/{_digest(blob).replace(':', '/')}": blob for blob in (packed, config_blob, manifest)}
    files |= {"index.json": index, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive
