"""A running door, its store, and two users with rootless namespaces."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixsnap.mounts import features

sys.path.insert(0, str(Path(__file__).parent))

from doorlab import ALICE, ALICE_RANGE, BOB, BOB_RANGE, NIXBLD, RunningDoor, rootless_maps, running_door
from dooruser import Namespace


@pytest.fixture
def store(directory: Path) -> Path:
    """A store as root's Nix leaves it: a group of its own on the directory, root's files; a build that is under way."""
    if missing := features.idmapped_mounts(directory).missing:
        pytest.skip(missing)
    for parent in (directory, *directory.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(parent.stat().st_mode) | stat.S_IXOTH)
    store = directory / "nix/store"
    path = store / "00000000000000000000000000000000-hello"
    (path / "bin").mkdir(parents=True)
    (path / "bin/hello").write_text("#!/bin/sh\necho hello\n")
    (path / "bin/hello").chmod(0o4555)
    (store / "11111111111111111111111111111111-half.drv.chroot").mkdir(mode=0o750)
    os.chown(store / "11111111111111111111111111111111-half.drv.chroot", NIXBLD + 1, NIXBLD)
    os.chown(store, 0, NIXBLD)
    store.chmod(0o1775)
    return store


@pytest.fixture
def door(directory: Path, store: Path) -> Iterator[RunningDoor]:
    """A running door."""
    with running_door(directory, store) as door:
        yield door


@pytest.fixture
def alice(directory: Path) -> Namespace:
    """Alice's rootless namespaces."""
    return Namespace(ALICE, directory=directory, **rootless_maps(ALICE, ALICE_RANGE))


@pytest.fixture
def bob(directory: Path) -> Namespace:
    """Bob's."""
    return Namespace(BOB, directory=directory, **rootless_maps(BOB, BOB_RANGE))
