"""Reading closureInfos, which are whatever their builder liked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.nix.closureinfo import read_closure_info
from nixsnap.nix.storepath import StorePath


def path(letter):
    return StorePath.parse(f"/nix/store/{letter * 32}-{letter}")


@pytest.fixture
def store(tmp_path):
    """An empty store directory."""
    directory = tmp_path / "store"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("content", [b"", b"/etc/passwd\n", b"\xff\xfe", b"/nix/store/../etc\n"])
def test_what_is_no_closure_info_is_refused(store, content):
    """store-paths is a list of store paths or nothing."""
    directory = store / path("i").name
    directory.mkdir()
    (directory / "store-paths").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"store-paths|line 1"):
        read_closure_info(store, path("i"))


def test_closure_info_behind_symlinks_is_refused(store):
    """Neither the store path nor its file may be a symlink: what is read stays in the store."""
    outside = store.parent / "outside"
    outside.mkdir()
    (outside / "store-paths").write_text(f"{path('a')}\n")
    (store / path("i").name).symlink_to(outside)
    with pytest.raises(InvalidArgumentError):
        read_closure_info(store, path("i"))
    directory = store / path("j").name
    directory.mkdir()
    (directory / "store-paths").symlink_to(outside / "store-paths")
    with pytest.raises(InvalidArgumentError):
        read_closure_info(store, path("j"))
    (directory / "store-paths").unlink()
    os.mkfifo(directory / "store-paths")
    with pytest.raises(InvalidArgumentError):
        read_closure_info(store, path("j"))


def test_a_directory_in_place_of_the_file_leaves_no_descriptor_open(store):
    """An image that names such a store path, pulled again and again, would use up all that the daemon may have."""
    (store / path("i").name / "store-paths").mkdir(parents=True)
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(InvalidArgumentError, match="is not a plain file"):
        read_closure_info(store, path("i"))
    assert sorted(Path("/proc/self/fd").iterdir()) == before
