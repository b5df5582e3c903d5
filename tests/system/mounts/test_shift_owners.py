"""Giving trees to other owners, where nothing can be idmapped."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from faults import Fault, with_faults

from nixsnap.mounts import kernel
from nixsnap.mounts.kernel import StepError
from nixsnap.mounts.values import IdMapping, IdRange

MAPPING = IdMapping(
    uids=(
        IdRange(container_id=0, host_id=500, length=1),
        IdRange(container_id=1, host_id=1000, length=100),
    ),
    gids=(IdRange(container_id=0, host_id=2000, length=1000),),
)


@pytest.fixture
def tree(directory: Path) -> Path:
    top = directory / "tree"
    (top / "store/path/inside").mkdir(parents=True)
    (top / "setuid").touch()
    (top / "setuid").chmod(0o6711)
    (top / "link").symlink_to("/etc/passwd")
    for name, uid, gid in (("second", 7, 8), ("stranger", 5000, 5000)):
        (top / name).touch()
        os.chown(top / name, uid, gid)
    return top


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_everything_below_is_given_away(tree):
    """By range; modes stay, strangers stay, symlinks are not followed, and the directory itself is left alone."""
    kernel.shift_owners(tree, MAPPING)
    assert owner(tree) == (0, 0)
    assert owner(tree / "setuid") == owner(tree / "store/path/inside") == owner(tree / "link") == (500, 2000)
    assert oct((tree / "setuid").stat().st_mode) == "0o106711"
    assert owner(tree / "second") == (1006, 2008)
    assert owner(tree / "stranger") == (5000, 5000)
    assert owner(Path("/etc/passwd")) == (0, 0)


def test_a_shallow_directory(tree):
    """Its entries are given away, not what is in them."""
    with kernel.open_beneath(tree, "store") as store:
        kernel.shift_owners(tree, MAPPING, shallow=store)
    assert owner(tree / "store") == owner(tree / "store/path") == (500, 2000)
    assert owner(tree / "store/path/inside") == (0, 0)


def test_a_mount_in_the_way(tree, directory):
    """It is not entered."""
    kernel.bind_mount(tree / "store", tree / "store/path", recursive=False, readonly=False)
    with pytest.raises(StepError) as caught:
        kernel.shift_owners(tree, MAPPING)
    kernel.unmount(tree / "store/path")
    assert caught.value.errno == errno.EXDEV
    assert directory.exists()


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (Fault("fchownat", errno.EROFS), "fchownat"),
        (Fault("getdents64", errno.EIO), "walk"),
        (Fault("openat2", errno.EMFILE), "walk"),
    ],
)
def test_each_step_that_fails_is_named(tree, fault, step):
    """With its errno."""
    with pytest.raises(StepError) as caught:
        with_faults(lambda: kernel.shift_owners(tree, MAPPING), fault)
    assert (caught.value.errno, caught.value.step) == (fault.errno, step)
