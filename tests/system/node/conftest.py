"""What the tests of a node share, also with those of pushing: a private registry, and a Kubernetes node."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UNIT = HERE.parents[1] / "unit"
sys.path += map(str, [HERE, HERE.parent / "push", UNIT / "containerd", UNIT / "snapshots"])

from kube import KubeNode, kube_node  # noqa: E402
from lab import run  # noqa: E402
from lab.mounts import unmount_below  # noqa: E402


@pytest.fixture
def kube(directory, installation, closure) -> Iterator[KubeNode]:
    """A node for pods; its pause image is a Nix image of `closure`."""
    with kube_node(directory, installation, closure) as node:
        yield node


@pytest.fixture
def overlaid(directory: Path) -> Iterator[Path]:
    """A directory on an overlay, the file system that cannot be idmapped, over one that can take an upper layer."""
    base = directory / "base"
    base.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", base)
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    target = directory / "overlaid"
    target.mkdir()
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    run("mount", "-t", "overlay", "overlay", "-o", options, target)
    yield target
    unmount_below(directory)
