"""Archives of ours in other tools' hands, and theirs in ours: containerd of each release, and skopeo."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from imagelab import Builder, read_image
from lab import Closure, Containerd, build_plain_image
from lab.processes import run

from nixsnap.image.archive import ImageArchive

NAME = "lab.invalid/mixed:1"


@pytest.fixture
def skopeo() -> Callable[..., str]:
    """Run skopeo, and return what it prints."""
    if shutil.which("skopeo") is None:
        pytest.skip("this machine lacks skopeo")
    return lambda *words: run("skopeo", *words).stdout


@pytest.fixture
def on_busybox(builder: Builder, mixed: Closure, directory: Path) -> Path:
    """An image of the closure on a base image that has a shell of its own."""
    base = build_plain_image(directory / "base.tar", reference="lab.invalid/base:1")
    flags = ("--closure", mixed.info, "--from-image", base, "--ref", NAME)
    return builder.build(
        "mixed", *flags, config={"Env": ["OWN=1"]}, copy_to_root=[f"{mixed.top}/dependencies"]
    )


def test_containerd_imports_and_runs_it(
    plain_containerd: Containerd, on_busybox: Path, mixed: Closure
) -> None:
    """Under its name; and a plain snapshotter unpacks it to the base, the mount points and the links."""
    plain_containerd.ctr("image", "import", "--snapshotter", "overlayfs", on_busybox)
    names = plain_containerd.ctr("image", "ls", "--quiet").stdout.split()
    listing = plain_containerd.run(
        NAME,
        "sh",
        "-c",
        'echo $OWN $PATH; readlink /dependencies; stat -c "%n %a %F" /nix/store/*',
        snapshotter="overlayfs",
    ).stdout.splitlines()

    assert names == [NAME]
    assert listing[:2] == ["1 /bin", f"{mixed.top}/dependencies"]
    kinds = {True: "directory", False: "regular empty file"}
    assert listing[2:] == [f"{path} 555 {kinds[Path(path).is_dir()]}" for path in sorted(mixed.paths)]


def test_containerd_exports_what_it_imported(
    plain_containerd: Containerd, on_busybox: Path, directory: Path
) -> None:
    """Its archive is as good a base as ours, and says the same of the image."""
    plain_containerd.ctr("image", "import", "--no-unpack", on_busybox)
    plain_containerd.ctr("image", "export", directory / "exported.tar", NAME)

    assert read_image(directory / "exported.tar") == read_image(on_busybox)


def test_skopeo_reads_both_kinds(on_busybox: Path, skopeo: Callable[..., str]) -> None:
    """As an OCI archive and as Docker's, which is what `docker load` reads."""
    _, manifest, config = read_image(on_busybox)
    as_oci = json.loads(skopeo("inspect", "--raw", f"oci-archive:{on_busybox}"))
    as_docker = json.loads(skopeo("inspect", "--config", f"docker-archive:{on_busybox}:{NAME}"))

    assert [layer["digest"] for layer in as_oci["layers"]] == [layer.digest for layer in manifest.layers]
    assert as_oci["layers"][-1]["annotations"] == manifest.layers[-1].annotations
    assert as_docker["rootfs"]["diff_ids"] == list(config.diff_ids)
    assert as_docker["config"]["Env"] == ["PATH=/bin", "OWN=1"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_base_from_skopeo(
    builder: Builder, on_busybox: Path, directory: Path, skopeo: Callable[..., str], compression: str
) -> None:
    """OCI archives with layers of either compression, and Docker archives, are bases; nix layers stay nix layers."""
    if compression == "zstd":
        pytest.importorskip("zstandard", reason="zstd data needs the package zstandard")
    layers = read_image(on_busybox)[1].layers
    oci, docker = directory / f"{compression}.tar", directory / "docker.tar"
    skopeo(
        "copy",
        "--dest-compress-format",
        compression,
        f"docker-archive:{on_busybox}",
        f"oci-archive:{oci}:x:1",
    )
    skopeo("copy", f"oci-archive:{on_busybox}", f"docker-archive:{docker}:x:1")
    for base, suffix in ((oci, f"+{compression}"), (docker, "")):
        image = builder.build(f"on-{base.stem}", "--from-image", base, "--ref", "x:1")
        with ImageArchive.open(image) as archive:
            manifest = archive.manifest(archive.index.manifests[0])
            archive.verify(archive.index.manifests[0])
        types = [layer.media_type for layer in manifest.layers]
        assert types[:-1] == [f"application/vnd.oci.image.layer.v1.tar{suffix}"] * 2
    image = builder.build("on-ours", "--from-image", on_busybox, "--ref", "x:1")
    assert read_image(image)[1].layers[:-1] == layers
