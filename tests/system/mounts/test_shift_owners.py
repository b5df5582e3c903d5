"""Giving trees to other owners, where nothing can be idmapped."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from faults import Fault, with_faults
from trees import make_deep

from nixsnap.mounts import filetrees, kernel
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import IdMapping, IdRange

MAPPING = IdMapping(
    uids=(
        IdRange(container_id=0, host_id=500, length=1),
        IdRange(container_id=1, host_id=1000, length=100),
    ),
    gids=(IdRange(container_id=0, host_id=2000, length=1000),),
)

HERE_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
NAMED_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


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
    filetrees.shift_owners(tree, MAPPING)
    assert owner(tree) == (0, 0)
    assert owner(tree / "setuid") == owner(tree / "store/path/inside") == owner(tree / "link") == (500, 2000)
    assert oct((tree / "setuid").stat().st_mode) == "0o106711"
    assert owner(tree / "second") == (1006, 2008)
    assert owner(tree / "stranger") == (5000, 5000)
    assert owner(Path("/etc/passwd")) == (0, 0)


def test_a_shallow_directory(tree):
    """Its entries are given away, not what is in them."""
    with filetrees.open_beneath(tree, "store") as store:
        filetrees.shift_owners(tree, MAPPING, shallow=store)
    assert owner(tree / "store") == owner(tree / "store/path") == (500, 2000)
    assert owner(tree / "store/path/inside") == (0, 0)


def test_a_mount_in_the_way(tree, directory):
    """It is not entered."""
    kernel.bind_mount(tree / "store", tree / "store/path", recursive=False, readonly=False)
    with pytest.raises(StepError) as caught:
        filetrees.shift_owners(tree, MAPPING)
    kernel.unmount(tree / "store/path")
    assert caught.value.errno == errno.EXDEV
    assert directory.exists()


def test_a_very_deep_tree_with_few_descriptors(directory):
    """10,000 levels, of which a hostile image may be made."""
    top = directory / "deep"
    top.mkdir()
    make_deep(top, 10_000)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        filetrees.shift_owners(top, MAPPING)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert owner(top / "/".join(["d"] * 1000)) == (500, 2000)
    filetrees.remove_tree(top)


@pytest.mark.parametrize("name", ["\n", "-R", "...", "x" * 255, os.fsdecode(b"\xff")])
def test_odd_names(tree, name):
    """They are names like others."""
    (tree / name).mkdir()
    (tree / name / name).touch()
    filetrees.shift_owners(tree, MAPPING)
    assert owner(tree / name) == owner(tree / name / name) == (500, 2000)


@pytest.mark.parametrize("at", [".", "store"])
def test_a_symlink_to_a_file_with_bits(tree, directory, at):
    """The link is given away; of what it leads to neither owner nor mode changes."""
    outside = directory / "outside"
    outside.touch()
    outside.chmod(0o4755)
    (tree / at / "out").symlink_to(outside)
    (tree / at / "away").symlink_to(directory)
    filetrees.shift_owners(tree, MAPPING)
    assert owner(tree / at / "out") == owner(tree / at / "away") == (500, 2000)
    assert owner(outside) == owner(directory) == (0, 0)
    assert oct(outside.stat().st_mode) == "0o104755"


def test_what_is_no_regular_file(tree):
    """Devices, pipes and sockets have owners, too; none is opened."""
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "device", 0o020600, os.makedev(1, 3))
    filetrees.shift_owners(tree, MAPPING)
    assert owner(tree / "fifo") == owner(tree / "device") == (500, 2000)


def test_nothing_leaks_in_hundreds_of_calls(tree):
    """Whether they succeed or fail."""
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(300):
        os.chown(tree / "setuid", 0, 0)
        (tree / "setuid").chmod(0o6711)
        filetrees.shift_owners(tree, MAPPING)
        os.chown(tree / "setuid", 0, 0)
        with pytest.raises(StepError):
            filetrees.shift_owners(tree / "setuid", MAPPING)
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (Fault("fchownat", errno.EROFS), "fchownat"),
        (Fault("fchmodat", errno.EROFS), "fchmodat"),
        (Fault("openat", errno.EMFILE, argument=(2, NAMED_FLAGS), below_descriptor=True), "openat"),
        (Fault("newfstatat", errno.EIO, argument=(3, 0x900)), "fstatat"),
        (Fault("getdents64", errno.EIO), "getdents64"),
        (Fault("openat2", errno.EMFILE), "openat2"),
        (Fault("openat", errno.EMFILE, argument=(2, HERE_FLAGS), below_descriptor=True), "open"),
    ],
)
def test_each_step_that_fails_is_named(tree, fault, step):
    """With its errno."""
    with pytest.raises(StepError) as caught:
        with_faults(lambda: filetrees.shift_owners(tree, MAPPING), fault)
    assert (caught.value.errno, caught.value.step) == (fault.errno, step)


def test_what_fails_is_named_with_its_place(tree):
    """The tree, and the entry."""
    with pytest.raises(StepError, match=r"fchmodat: Read-only file system: .*/tree' \('setuid'\)"):
        with_faults(lambda: filetrees.shift_owners(tree, MAPPING), Fault("fchmodat", errno.EROFS))


@pytest.mark.parametrize(("shallow", "step"), [(True, "fstat"), (False, "walk")])
def test_looking_at_a_directory_can_fail(tree, shallow, step):
    """At the shallow one, and at the top; glibc has two ways to call fstat."""
    faults = [Fault(call, errno.EIO) for call in ("newfstatat", "fstat")]
    with filetrees.open_beneath(tree, "store") as store, pytest.raises(StepError) as caught:
        with_faults(
            lambda: filetrees.shift_owners(tree, MAPPING, shallow=store if shallow else None), *faults
        )
    assert (caught.value.errno, caught.value.step) == (errno.EIO, step)
