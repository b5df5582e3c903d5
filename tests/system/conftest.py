"""Fixtures of the system tier: each containerd release, nixsnap, and the two wired together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Containerd, Installation, NixsnapDaemon, Node
from lab.machine import SERIES
from lab.place import HOST, Place
from lab.requirements import need_containerd, need_rootless
from lab.rootless import Rootless
from lab.session import Session


@pytest.fixture(params=SERIES, ids=lambda series: f"containerd-{series}")
def installation(request: pytest.FixtureRequest) -> Installation:
    """Each containerd release we promise to work with, one after the other."""
    return need_containerd(request.param)


@pytest.fixture
def place() -> Place:
    """Where the node runs: the host, unless a test module says otherwise."""
    return HOST


@pytest.fixture
def session(directory: Path) -> Iterator[Session]:
    """A plain user, as if logged in."""
    need_rootless()
    with Session.open(directory) as session:
        yield session


@pytest.fixture
def rootless(directory: Path) -> Iterator[Rootless]:
    """A plain user's namespaces, made by rootlesskit as Debian 12 has it."""
    need_rootless()
    with Rootless.start(directory) as rootless:
        yield rootless


@pytest.fixture
def store_view() -> str:
    """The kind of rootfs view: the best there is, unless a test is parametrised with others."""
    return "auto"


@pytest.fixture
def nixsnap(directory: Path, place: Place, store_view: str) -> Iterator[NixsnapDaemon]:
    """A running nixsnap with an empty root and its image service off."""
    (directory / "nixsnap").mkdir()
    config = f'store_view = "{store_view}"\n[image_service]\nenable = false\n'
    daemon = NixsnapDaemon.start(directory / "nixsnap", config=config, place=place)
    yield daemon
    daemon.destroy()


@pytest.fixture
def containerd(
    installation: Installation, directory: Path, nixsnap: NixsnapDaemon, place: Place
) -> Iterator[Containerd]:
    """A private containerd of each release in turn, with `nixsnap` as its snapshotter `nix`, CRI off."""
    (directory / "containerd").mkdir()
    containerd = Containerd.start(
        installation, directory / "containerd", snapshotter=nixsnap.address, place=place
    )
    yield containerd
    containerd.stop()


@pytest.fixture
def node(directory: Path, nixsnap: NixsnapDaemon, containerd: Containerd) -> Node:
    """Both of the above under one name."""
    return Node(nixsnap=nixsnap, containerd=containerd, directory=directory)
