"""What the image tests share: `nix2container build` on values, and a verified look into what it wrote."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import attrs
from lab.daemon import installed_program
from lab.processes import run

from nixsnap.image.archive import ImageArchive
from nixsnap.image.oci import ImageConfig, Manifest


@attrs.frozen
class Builder:
    """Runs `nix2container build` on JSON that it writes to files."""

    directory: Path

    def build(self, name: str, *flags: str | Path, config: Any = None, copy_to_root: Any = None) -> Path:
        words: list[str | Path] = [*flags]
        for flag, value in (("--config", config), ("--copy-to-root", copy_to_root)):
            if value is not None:
                file = self.directory / f"{name}{flag}.json"
                file.write_text(json.dumps(value))
                words += [flag, file]
        archive = self.directory / f"{name}.tar"
        run(installed_program("nix2container"), "--log-level", "warn", "build", *words, archive)
        return archive


def read_image(archive: Path) -> tuple[str, Manifest, ImageConfig]:
    """Verify an archive of one image; return its name, manifest and config."""
    with ImageArchive.open(archive) as opened:
        (descriptor,) = opened.index.manifests
        opened.verify(descriptor)
        manifest = opened.manifest(descriptor)
        name = descriptor.annotations.get("io.containerd.image.name", "")
        return name, manifest, opened.config(manifest)


def layer_entries(archive: Path) -> dict[str, tarfile.TarInfo]:
    """The entries of the image's last layer."""
    with ImageArchive.open(archive) as opened:
        layer = opened.manifest(opened.index.manifests[0]).layers[-1]
        with opened.open_blob(layer.digest) as blob, tarfile.open(fileobj=io.BytesIO(blob.read())) as content:
            return {member.name: member for member in content.getmembers()}
