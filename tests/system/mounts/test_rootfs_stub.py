"""Stub layers under a real overlay: what redirects show, what they hide, and files on file systems with reflinks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from faults import Fault, with_faults
from trees import names

from nixsnap.mounts import features, filetrees, kernel, stubfill
from nixsnap.mounts.operations import OverlayMount

EXDEV = 18


@pytest.fixture
def view(directory: Path):
    """A rootfs view of three store paths out of six, mounted; gives the directory that a container gets."""
    store, stub, upper, work, target = (
        directory / name for name in ("store", "stub", "upper", "work", "target")
    )
    for made in (store, stub / "fs/nix/store", upper / "fs", work, target):
        made.mkdir(parents=True)
    for name in ("app", "library", "secret"):
        (store / name / "share").mkdir(parents=True)
        (store / name / "share" / "file").write_text(name)
        os.chown(store / name, 1234, 5678)
        (store / name).chmod(0o555)
        os.utime(store / name, (1, 1))
    (store / "link").symlink_to("/")
    (store / "text").write_text("text")
    (store / "hidden").write_text("hidden")
    counts = stubfill.fill_stub(
        stub / "fs/nix/store",
        store=store,
        names=["app", "library", "link", "text"],
        redirect_xattr=features.REDIRECT_XATTR,
    )
    assert (counts.directories, counts.symlinks, counts.files) == (2, 1, 1)
    OverlayMount(
        lowerdirs=(stub, store),
        upperdir=upper,
        workdir=work,
        options=("redirect_dir=follow", *features.index_off()),
    ).mount(target)
    yield target / "fs"
    kernel.detach(target)


def test_the_view_shows_the_named_store_paths_and_no_other(view):
    """One mount, whatever their number."""
    shown = view / "nix/store"
    assert names(shown) == ["app", "library", "link", "text"]
    assert (shown / "app/share/file").read_text() == "app"
    assert (shown / "library/share/file").read_text() == "library"
    assert (shown / "text").read_text() == "text"
    assert names(view) == ["nix"]


def test_a_store_path_that_is_a_symlink_stays_one(view):
    """To the container's root, not the host's."""
    assert (view / "nix/store/link").is_symlink()
    assert (view / "nix/store/link").readlink() == Path("/")


def test_a_store_path_looks_as_it_does_in_the_store(view):
    """Owner, mode and time, of the directory itself."""
    status = (view / "nix/store/app").stat()
    assert (status.st_uid, status.st_gid) == (1234, 5678)
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o555, 1)


def test_writing_over_a_store_path_leaves_the_store_alone(view):
    """Copy on write."""
    (view / "nix/store/app/share/file").write_text("changed")
    assert (view / "nix/store/app/share/file").read_text() == "changed"
    assert (view.parents[1] / "store/app/share/file").read_text() == "app"


def test_writing_over_a_linked_file_leaves_the_store_alone(view):
    """The stub shares its inode with the store, but the container writes to its own copy."""
    (view / "nix/store/text").write_text("changed")
    assert (view.parents[1] / "store/text").read_text() == "text"


def test_a_file_is_cloned_where_there_are_reflinks(btrfs):
    """A real FICLONE: links are made to fail as they do between two mounts."""
    (btrfs / "store").mkdir()
    (btrfs / "stub").mkdir()
    contents = os.urandom(2**20)
    (btrfs / "store" / "file").write_bytes(contents)

    def fill():
        return stubfill.fill_stub(btrfs / "stub", store=btrfs / "store", names=["file"], redirect_xattr=None)

    counts = with_faults(fill, Fault("linkat", EXDEV))
    assert counts.cloned == 1
    assert (btrfs / "stub" / "file").read_bytes() == contents
    assert (btrfs / "stub" / "file").stat().st_ino != (btrfs / "store" / "file").stat().st_ino


def test_a_store_on_another_mount_of_the_same_file_system(btrfs):
    """NixOS binds its store read-only over itself: no links across mounts, but reflinks."""
    for name in ("store", "stub", "bound"):
        (btrfs / name).mkdir()
    (btrfs / "store" / "file").write_bytes(b"x" * 100_000)
    kernel.bind_mount(btrfs / "store", btrfs / "bound", recursive=False, readonly=True)
    try:
        counts = stubfill.fill_stub(
            btrfs / "stub", store=btrfs / "bound", names=["file"], redirect_xattr=None
        )
    finally:
        kernel.unmount(btrfs / "bound")
    assert counts.linked == 0
    assert counts.files == 1
    assert (btrfs / "stub" / "file").read_bytes() == b"x" * 100_000


def test_remove_tree_on_btrfs(btrfs):
    """Directories with something in them are ENOTEMPTY there too, and large ones are read in parts."""
    for number in range(300):
        (btrfs / "tree" / str(number) / "below").mkdir(parents=True)
        (btrfs / "tree" / str(number) / "file").write_text("x")
    filetrees.remove_tree(btrfs / "tree")
    assert not (btrfs / "tree").exists()
