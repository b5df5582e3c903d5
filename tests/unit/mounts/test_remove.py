"""remove_tree: all of it, and nothing else."""

from __future__ import annotations

import errno
import os
import resource
import threading
import warnings
from pathlib import Path

import pytest
from faults import Fault, with_faults
from trees import make_deep

from nixsnap.mounts import filetrees
from nixsnap.mounts.errors import StepError

NOBODY = 65534
AT_REMOVEDIR = 0x200  # linux/fcntl.h
PARENT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@pytest.fixture
def tree(tmp_path):
    """A small tree with a bit of everything."""
    tree = tmp_path / "tree"
    (tree / "a" / "b" / "c").mkdir(parents=True)
    (tree / "a" / "empty").mkdir()
    (tree / "a" / "file").write_text("x")
    (tree / "a" / "b" / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "a" / "b" / "fifo")
    (tree / "z").mkdir()
    return tree


def test_a_tree_goes(tmp_path, tree):
    """With all that is in it."""
    filetrees.remove_tree(tree)
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_a_symlink_go(tmp_path):
    """What is not a directory is removed as what it is."""
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "file").touch()
    filetrees.remove_tree(tmp_path / "link")
    filetrees.remove_tree(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_is_not_there_is_fine(tmp_path):
    """Nor its parent: removal was interrupted once before, perhaps."""
    filetrees.remove_tree(tmp_path / "absent")
    filetrees.remove_tree(tmp_path / "absent" / "below")


def test_symlinks_are_not_followed(tmp_path, tree):
    """Wherever a container's symlinks point, that stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (tree / "a" / "out").symlink_to(outside)
    (tree / "a" / "root").symlink_to("/")
    filetrees.remove_tree(tree)
    assert (outside / "precious").exists()


def test_a_symlink_in_place_of_the_parent_is_not_followed(tmp_path, tree):
    """Else it would remove another directory's entry of that name."""
    (tmp_path / "link").symlink_to(tree)
    with pytest.raises(StepError, match="open directory: Not a directory"):
        filetrees.remove_tree(tmp_path / "link" / "a")
    assert (tree / "a").exists()


def test_a_wide_directory_goes(tmp_path):
    """More entries than one reading returns, directories with something in them among them."""
    wide = tmp_path / "wide"
    wide.mkdir()
    for number in range(3000):
        if number % 3:
            (wide / f"{number:0100}").touch()
        else:
            (wide / f"{number:0100}").mkdir()
            (wide / f"{number:0100}" / "file").touch()
    filetrees.remove_tree(wide)
    assert not wide.exists()


def test_a_very_deep_tree_goes_with_few_descriptors(in_memory):
    """10,000 levels: no recursion, no path put together, no descriptor a level."""
    make_deep(in_memory, 10_000)
    (in_memory / "beside").mkdir()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        filetrees.remove_tree(in_memory / "d")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [path.name for path in in_memory.iterdir()] == ["beside"]


@pytest.mark.parametrize("name", ["\n", " ", "-rf", "...", "x" * 255, os.fsdecode(b"\xff")])
def test_odd_names_go(tmp_path, name):
    """They are names like others."""
    (tmp_path / "tree" / name).mkdir(parents=True)
    (tmp_path / "tree" / name / name).touch()
    filetrees.remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def as_owner(directory: Path, action) -> int:
    """Run an action in a directory as its owner, who is not root, in a child; return its errno, or 0."""
    with warnings.catch_warnings():
        # Python 3.12 warns of other threads; there may be some, but the child takes no lock of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.chdir(directory)  # now, while what lies above it may still be searched
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
            os._exit(0)
        except StepError as error:
            os._exit(error.errno)
        except BaseException:  # noqa: BLE001 - a child of fork never returns into pytest
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def owned(tmp_path) -> Path:
    """A directory of somebody who is not root."""
    owned = tmp_path / "owned"
    owned.mkdir()
    if os.geteuid() == 0:
        os.chown(owned, NOBODY, NOBODY)
    return owned


def test_an_owner_removes_a_tree_that_it_may_not_write_to(owned):
    """Store directories are 0555, and rootless users own their copies."""

    def action() -> None:
        tree = Path("tree")
        (tree / "readonly" / "below").mkdir(parents=True)
        (tree / "readonly" / "below" / "file").touch()
        (tree / "readonly" / "below").chmod(0o555)
        (tree / "readonly").chmod(0o555)
        filetrees.remove_tree(tree)

    assert as_owner(owned, action) == 0
    assert list(owned.iterdir()) == []


def test_what_another_user_owns_is_refused(owned):
    """EACCES is an error where the mode is not ours to change."""
    if os.geteuid() != 0:
        pytest.skip("only root can make files that another user owns")
    (owned / "roots").mkdir()
    (owned / "roots" / "file").touch()
    assert as_owner(owned, lambda: filetrees.remove_tree(Path("roots"))) == errno.EACCES
    assert (owned / "roots" / "file").exists()


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (Fault("unlinkat", errno.EROFS), "unlinkat"),
        (Fault("openat2", errno.ENOSYS), "openat2"),
        (Fault("getdents64", errno.EIO), "getdents64"),
        (Fault("lseek", errno.EINVAL), "getdents64"),
        (Fault("openat", errno.EMFILE, argument=(2, PARENT_FLAGS), below_descriptor=True), "openat parent"),
        (Fault("newfstatat", errno.EIO), "walk"),
    ],
)
def test_each_step_that_fails_is_named(tree, fault, step):
    """The tree, too; the entry where it was one."""
    faults = [fault, Fault("fstat", errno.EIO)] if fault.call == "newfstatat" else [fault]
    with pytest.raises(StepError) as caught:
        with_faults(lambda: filetrees.remove_tree(tree), *faults)
    assert (caught.value.errno, caught.value.step, caught.value.filename) == (fault.errno, step, str(tree))


def test_a_directory_that_fills_up_all_the_time_is_given_up(tmp_path):
    """Nobody keeps the daemon busy for ever."""
    (tmp_path / "tree" / "full").mkdir(parents=True)
    never_empty = Fault("unlinkat", errno.ENOTEMPTY, argument=(2, AT_REMOVEDIR))
    with pytest.raises(StepError, match=r"unlinkat: Directory not empty: .*/tree' \('full'\)"):
        with_faults(lambda: filetrees.remove_tree(tmp_path / "tree"), never_empty)


def test_files_that_appear_meanwhile_go_too(tmp_path):
    """A process may still be writing; when it stops, the tree is gone."""
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                (tree / "below" / str(number)).touch()
            except FileNotFoundError:
                return

    writer = threading.Thread(daemon=True, target=write)
    writer.start()
    try:
        filetrees.remove_tree(tree)
    except StepError as error:
        if error.errno != errno.ENOTEMPTY:  # that it was given up is allowed, too
            raise
    finally:
        stop.set()
        writer.join()
    filetrees.remove_tree(tree)
    assert not tree.exists()


def test_two_at_once_do_not_disturb_each_other(tmp_path):
    """Whoever comes second finds it gone, which is what it wanted."""
    for _ in range(20):
        tree = tmp_path / "tree"
        for number in range(20):
            (tree / str(number) / "a" / "b").mkdir(parents=True)
        errors = []

        def remove(tree: Path = tree, errors: list = errors) -> None:
            try:
                filetrees.remove_tree(tree)
            except StepError as error:
                errors.append(error)

        threads = [threading.Thread(daemon=True, target=remove) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert not tree.exists()
