"""Base images in every wrapping there is: an image upon each is loaded into a real containerd, and runs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from imagelab import Builder, read_image
from lab import Closure, Containerd, build_plain_image, load_image

NAME = "lab.invalid/upon:1"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda raw: gzip.compress(raw, mtime=0),
    "zstd": zstandard.compress,
}
SUFFIXES = {"plain": "", "gzip": "+gzip", "zstd": "+zstd"}

Files = dict[str, bytes]


def digest_of(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def write_tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def parts_of(archive: Path) -> tuple[dict[str, Any], bytes]:
    """The config and the one layer, uncompressed, of an image."""
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        content = {name: stream.read() for name, stream in files.items() if stream}

    def blob(digest: str) -> bytes:
        return content[f"blobs/{digest.replace(':', '/')}"]

    manifest = json.loads(blob(json.loads(content["index.json"])["manifests"][0]["digest"]))
    return json.loads(blob(manifest["config"]["digest"])), gzip.decompress(
        blob(manifest["layers"][0]["digest"])
    )


def oci(config: dict[str, Any], layer: bytes, packed: str) -> Files:
    """An OCI layout, without a name, as many tools write it."""
    media = "application/vnd.oci.image"
    blobs: Files = {}

    def keep(kind: str, raw: bytes) -> dict[str, Any]:
        blobs[f"blobs/sha256/{digest_of(raw)}"] = raw
        return {"mediaType": f"{media}.{kind}", "digest": f"sha256:{digest_of(raw)}", "size": len(raw)}

    manifest = {
        "schemaVersion": 2,
        "config": keep("config.v1+json", json.dumps(config).encode()),
        "layers": [keep(f"layer.v1.tar{SUFFIXES[packed]}", PACKERS[packed](layer))],
    }
    listed = keep("manifest.v1+json", json.dumps(manifest).encode())
    index = json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode()
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index, **blobs}


def docker(config: dict[str, Any], layer: bytes, packed: str) -> Files:
    """What `docker save` wrote before it wrote layouts too, and skopeo writes."""
    raw = json.dumps(config).encode()
    listing = [
        {
            "Config": f"{digest_of(raw)}.json",
            "RepoTags": ["base:1"],
            "Layers": [f"{digest_of(layer)}/layer.tar"],
        }
    ]
    return {
        f"{digest_of(layer)}/layer.tar": PACKERS[packed](layer),
        f"{digest_of(raw)}.json": raw,
        "manifest.json": json.dumps(listing).encode(),
    }


def docker_tools(config: dict[str, Any], layer: bytes, packed: str) -> Files:
    """What dockerTools.buildImage of nixpkgs writes: paths begin with a dot, and Docker 1.9's files are there too."""
    files = docker(config, layer, packed)
    identity = digest_of(layer)
    files |= {
        "repositories": json.dumps({"base": {"1": identity}}).encode(),
        f"{identity}/VERSION": b"1.0",
        f"{identity}/json": json.dumps({"id": identity}).encode(),
    }
    return {f"./{name}": content for name, content in files.items()}


@pytest.mark.parametrize("installation", ["2"], indirect=True)
@pytest.mark.parametrize("kind", [oci, docker, docker_tools], ids=lambda kind: kind.__name__)
def test_base_in_every_wrapping(
    builder: Builder, plain_containerd: Containerd, closure: Closure, directory: Path, kind
) -> None:
    """Layer and archive each plain, gzip and zstd: layers stay as they are, and the base's files are there."""
    config, layer = parts_of(build_plain_image(directory / "base.tar", reference="base:1"))
    for packed, pack_layer in PACKERS.items():
        written = write_tar(kind(config, layer, packed))
        images = set()
        for archive_packed, pack in PACKERS.items():
            base = directory / f"{packed}-{archive_packed}.tar"
            base.write_bytes(pack(written))
            image = builder.build("upon", "--from-image", base, "--closure", closure.info, "--ref", NAME)
            images.add(image.read_bytes())
        assert len(images) == 1
        _, manifest, upon = read_image(image)
        lower, nix_layer = manifest.layers
        assert lower.media_type == f"application/vnd.oci.image.layer.v1.tar{SUFFIXES[packed]}"
        assert lower.digest == f"sha256:{digest_of(pack_layer(layer))}"
        assert upon.diff_ids[0] == config["rootfs"]["diff_ids"][0]
        assert "containerd.io/snapshot/nix-closure" in nix_layer.annotations
        # With containerd's own snapshotter, to which a nix layer is one of empty directories.
        load_image(plain_containerd, image, namespace=packed, options=["--snapshotter", "overlayfs"])
        shown = plain_containerd.ctr(
            "run", "--rm", "--snapshotter", "overlayfs", NAME, packed, "/bin/sh", "-c",
            "echo base; ls /nix/store", namespace=packed,
        )  # fmt: skip
        names = sorted(path.removeprefix("/nix/store/") for path in closure.paths)
        assert shown.stdout.split() == ["base", *names]
