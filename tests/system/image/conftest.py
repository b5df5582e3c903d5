"""Fixtures of the image tests: a containerd of each release with nothing of ours in it, and `nix2container build`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from imagelab import Builder
from lab import Closure, Containerd, Installation, nix_closure
from lab.requirements import need_nix


@pytest.fixture
def plain_containerd(installation: Installation, directory: Path) -> Iterator[Containerd]:
    """A private containerd of each release in turn, with its own snapshotters alone."""
    (directory / "containerd").mkdir()
    containerd = Containerd.start(installation, directory / "containerd")
    yield containerd
    containerd.stop()


@pytest.fixture
def builder(directory: Path) -> Builder:
    """Builds into the test's directory."""
    return Builder(directory)


@pytest.fixture(scope="session")
def mixed() -> Closure:
    """A closure of directories, files and executables, whose application has a link to nowhere too."""
    need_nix()
    script = "$out/bin/ln -s /absent $out/away"
    return nix_closure(6, kinds=("directory", "file", "executable"), name="mixed", script=script)
