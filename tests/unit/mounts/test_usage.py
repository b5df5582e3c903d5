"""disk_usage against containerd's way of counting, written out in Python."""

from __future__ import annotations

import errno
import os
import random
import resource
import threading
from pathlib import Path

import pytest
from faults import Fault, with_faults
from trees import make_deep

from nixsnap.mounts import filetrees
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import DiskUsage

HERE_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def containerd_usage(root: Path) -> DiskUsage:
    """What continuity's fs.DiskUsage returns: every inode of the walk once, blocks of 512 bytes."""
    seen: dict[tuple[int, int], int] = {}

    def count(path: Path) -> None:
        status = path.lstat()
        seen.setdefault((status.st_dev, status.st_ino), status.st_blocks * 512)
        if path.is_dir() and not path.is_symlink():
            for entry in path.iterdir():
                count(entry)

    count(root)
    return DiskUsage(inodes=len(seen), size_bytes=sum(seen.values()))


def test_a_tree(tmp_path):
    """Files, directories and symlinks, the top directory included."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_bytes(b"x" * 10_000)
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "a" / "fifo")
    usage = filetrees.disk_usage(tmp_path)
    assert usage == containerd_usage(tmp_path)
    assert usage.inodes == 6


def test_hard_links_count_once(tmp_path):
    """In one directory and across directories."""
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "file", tmp_path / "again")
    os.link(tmp_path / "file", tmp_path / "a" / "again")
    usage = filetrees.disk_usage(tmp_path)
    assert usage == containerd_usage(tmp_path)
    assert usage.inodes == 3
    assert 100_000 <= usage.size_bytes < 200_000


def test_allocated_blocks_count_and_not_lengths(tmp_path):
    """A sparse file takes up little."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**30)
    usage = filetrees.disk_usage(tmp_path)
    assert usage == containerd_usage(tmp_path)
    assert usage.size_bytes < 2**20


def test_an_empty_directory_is_one_inode(tmp_path):
    """An upper directory before the container writes: 4 KiB on ext4."""
    assert filetrees.disk_usage(tmp_path) == containerd_usage(tmp_path)
    assert filetrees.disk_usage(tmp_path).inodes == 1


def test_a_file_is_counted_by_itself(tmp_path):
    """filepath.Walk takes a file as its root."""
    (tmp_path / "file").write_bytes(b"x" * 5000)
    assert filetrees.disk_usage(tmp_path / "file") == containerd_usage(tmp_path / "file")


def test_a_symlink_is_not_followed(tmp_path):
    """Neither at the top nor below."""
    (tmp_path / "link").symlink_to("/")
    assert filetrees.disk_usage(tmp_path / "link") == containerd_usage(tmp_path / "link")
    assert filetrees.disk_usage(tmp_path).inodes == 2


@pytest.mark.parametrize("seed", range(5))
def test_random_trees(tmp_path, seed):
    """Of many shapes; the set of inodes grows several times."""
    rng = random.Random(seed)
    directories = [tmp_path]
    files = []
    for number in range(2000):
        parent = rng.choice(directories[-50:])
        kind = rng.random()
        if kind < 0.3:
            directories.append(parent / f"d{number}")
            directories[-1].mkdir()
        elif kind < 0.4 and files:
            os.link(rng.choice(files), parent / f"l{number}")
        else:
            files.append(parent / f"f{number}")
            files[-1].write_bytes(b"x" * rng.choice([0, 1, 5000]))
    assert filetrees.disk_usage(tmp_path) == containerd_usage(tmp_path)


def test_a_very_deep_tree_needs_few_descriptors(in_memory):
    """10,000 levels, which a container makes in a moment."""
    make_deep(in_memory, 10_000)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        usage = filetrees.disk_usage(in_memory)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert usage.inodes == 10_002


def test_what_is_not_there(tmp_path):
    """The path itself has to exist."""
    with pytest.raises(StepError) as caught:
        filetrees.disk_usage(tmp_path / "absent")
    assert (caught.value.errno, caught.value.step) == (errno.ENOENT, "open")
    assert caught.value.filename == str(tmp_path / "absent")


def test_what_goes_between_reading_and_looking_is_not_counted(tmp_path):
    """A container is at work in the tree: here all its files vanish at once."""
    (tmp_path / "file").touch()
    (tmp_path / "directory" / "below").mkdir(parents=True)
    gone = Fault(
        "newfstatat", errno.ENOENT, argument=(3, 0x100 | 0x800)
    )  # AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT
    assert with_faults(lambda: filetrees.disk_usage(tmp_path), gone).inodes == 1


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENOTDIR, errno.ELOOP])
def test_a_directory_that_is_replaced_before_it_is_entered_counts_alone(tmp_path, error):
    """It was a directory when its name was read; now it is gone, a file, or a symlink."""
    (tmp_path / "directory" / "below").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert with_faults(lambda: filetrees.disk_usage(tmp_path), Fault("openat2", error)).inodes == 3


def test_a_tree_that_changes_all_the_time_is_counted_without_an_error(tmp_path):
    """Renames, removals, directories moved elsewhere while the walk is inside them."""
    stop = threading.Event()
    for number in range(40):
        (tmp_path / "a" / str(number) / "x" / "y" / "z").mkdir(parents=True)
    (tmp_path / "b").mkdir()

    def churn() -> None:
        rng = random.Random(1)
        while not stop.is_set():
            number = str(rng.randrange(40))
            for source, target in (("a", "b"), ("b", "a")):
                try:
                    (tmp_path / source / number / "x").rename(tmp_path / target / f"moved-{number}")
                    (tmp_path / target / f"moved-{number}").rename(tmp_path / source / number / "x")
                except OSError:
                    continue

    churner = threading.Thread(daemon=True, target=churn)
    churner.start()
    try:
        for _ in range(300):
            assert filetrees.disk_usage(tmp_path).inodes > 40
    finally:
        stop.set()
        churner.join()


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (Fault("newfstatat", errno.EIO, argument=(3, 0x900)), "fstatat"),
        (Fault("getdents64", errno.EIO), "getdents64"),
        (Fault("openat2", errno.EACCES), "openat2"),
        (Fault("openat", errno.EMFILE, argument=(2, HERE_FLAGS), below_descriptor=True), "open"),
    ],
)
def test_each_step_that_fails_is_named(tmp_path, fault, step):
    """And the tree."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(StepError) as caught:
        with_faults(lambda: filetrees.disk_usage(tmp_path), fault)
    error = caught.value
    assert (error.errno, error.step, error.filename) == (fault.errno, step, str(tmp_path))


def test_a_directory_that_may_not_be_read_is_named(tmp_path):
    """containerd's walk ends with an error there, too."""
    (tmp_path / "a" / "secret").mkdir(parents=True)
    with pytest.raises(StepError, match=r"openat2: Permission denied: .*\('a'\)"):
        with_faults(lambda: filetrees.disk_usage(tmp_path), Fault("openat2", errno.EACCES))


def test_looking_at_the_top_can_fail(tmp_path):
    """glibc has two ways to call fstat."""
    with pytest.raises(StepError, match=r"^fstat: Input/output error"):
        with_faults(
            lambda: filetrees.disk_usage(tmp_path), Fault("newfstatat", errno.EIO), Fault("fstat", errno.EIO)
        )
