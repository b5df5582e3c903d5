"""The Go nix-snapshotter and its nix2container: images of ours are theirs, and theirs are ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from clients import TRANSFER_SERVICE, original_snapshotter
from lab import Closure, Containerd, NixsnapDaemon, build_image, installed_program, nix_closure, run
from lab.nix import nix_environment
from lab.requirements import need_unpacked
from registries import start_docker_registry

pytestmark = pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)  # the original needs 1.7

OURS, ORIGINAL = "nix", "original"
NAME = "lab.invalid/app:1"


@attrs.frozen
class Both:
    """One containerd with both snapshotters."""

    containerd: Containerd
    closure: Closure
    directory: Path

    def load(self, archive: Path, *, snapshotter: str) -> None:
        """By our tool, which passes annotations on to either."""
        program, flags = installed_program("nix2container"), ("--address", self.containerd.address)
        run(
            program,
            *flags,
            "--namespace",
            self.containerd.namespace,
            "load",
            "--snapshotter",
            snapshotter,
            archive,
        )

    def original_tool(self, *arguments: str | Path) -> None:
        program, flags = need_unpacked("original/nix2container"), ("--address", self.containerd.address)
        run(program, *flags, "--namespace", self.containerd.namespace, *arguments)

    def original_build(self, *options: str | Path) -> Path:
        """An archive by the original's tool."""
        for name, value in (
            ("config", {"Env": ["A=1"], "Cmd": [f"{self.closure.top}/bin/sh"]}),
            ("roots", [self.closure.top]),
        ):
            (self.directory / f"{name}.json").write_text(json.dumps(value))
        inputs = (
            *("--config", self.directory / "config.json", "--copy-to-root", self.directory / "roots.json"),
            *("--closure", self.closure.store_paths_file, "--ref", NAME),
        )
        archive = self.directory / "original.tar"
        self.original_tool("build", *options, *inputs, archive)
        return archive

    def runs(self, snapshotter: str, name: str = NAME) -> bool:
        """Whether a container has the closure, its files, and the root with links into it."""
        script = "ls /nix/store; cat /nix/store/*-dep-1; [ -x /nix/store/*-dep-2 ] && ls /bin/busybox"
        shown = self.containerd.run(
            name, f"{self.closure.top}/bin/sh", "-c", script, snapshotter=snapshotter
        ).stdout.split()
        names = sorted(path.removeprefix("/nix/store/") for path in self.closure.paths)
        return shown == [*names, "1", "both", "/bin/busybox"]


@pytest.fixture
def both(nixsnap: NixsnapDaemon, installation, directory) -> Iterator[Both]:
    for name in ("c", "o"):
        (directory / name).mkdir()
    closure = nix_closure(
        4, kinds=("directory", "file", "executable"), salt="both", script="$out/bin/ln -s busybox $out/bin/b"
    )
    with original_snapshotter(directory / "o", nix_environment()) as address:
        proxy = f'[proxy_plugins.{ORIGINAL}]\n  type = "snapshot"\n  address = "{address}"\n'
        containerd = Containerd.start(
            installation,
            directory / "c",
            snapshotter=nixsnap.address,
            extra_config=proxy + TRANSFER_SERVICE.format(snapshotter=OURS),
        )
        yield Both(containerd, closure, directory)
        containerd.stop()


@pytest.mark.parametrize("form", ["closure", "legacy", "both"])
def test_our_image_runs_by_either(both, form):
    """Whatever its annotations say."""
    archive = build_image(
        both.closure,
        both.directory / "ours.tar",
        reference=NAME,
        copy_to_root=[both.closure.top],
        options=["--annotations", form],
    )
    for snapshotter in (ORIGINAL, OURS):
        both.load(archive, snapshotter=snapshotter)
        assert both.runs(snapshotter)


def test_their_image_runs_by_either(both):
    """And an image of ours that is built upon it."""
    theirs = both.original_build()
    upon = build_image(nix_closure(1, salt="upon"), both.directory / "upon.tar", reference="lab.invalid/upon:1",
                       options=["--from-image", theirs])  # fmt: skip
    for snapshotter in (ORIGINAL, OURS):
        both.load(theirs, snapshotter=snapshotter)
        assert both.runs(snapshotter)
        both.load(upon, snapshotter=snapshotter)
        assert "dep-3" in both.containerd.run("lab.invalid/upon:1", "/bin/ls", "/nix/store",
                                              snapshotter=snapshotter).stdout  # fmt: skip


def test_their_image_without_annotations(both, nixsnap):
    """`ctr image import` passes none on; their layers are recognised too."""
    theirs = both.original_build()
    local = ["--local"] if both.containerd.installation.series == "2" else []
    both.containerd.ctr("image", "import", *local, "--snapshotter", OURS, theirs)
    assert both.runs(OURS)
    assert "inferred" in nixsnap.log_text()


def test_their_tools_read_our_archive(both):
    """It is loaded by theirs and runs, is pushed by theirs as it is, and is a base for theirs."""
    ours = build_image(
        both.closure, both.directory / "ours.tar", reference=NAME, copy_to_root=[both.closure.top]
    )
    both.original_tool("load", ours)
    assert both.runs(OURS)
    registry = start_docker_registry(both.directory / "registry")
    try:
        reference = f"{registry.host}/team/app:1"
        both.original_tool("push", "--plain-http", "--ref", reference, ours)
        both.containerd.ctr("image", "pull", "--plain-http", "--snapshotter", OURS, reference)
        assert both.runs(OURS, reference)
    finally:
        registry.stop()
    both.original_build("--from-image", ours)
