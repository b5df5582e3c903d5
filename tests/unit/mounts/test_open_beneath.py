"""open_beneath: no way out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from faults import Fault, with_faults

from nixsnap.mounts import filetrees
from nixsnap.mounts.errors import StepError


@pytest.fixture
def root(tmp_path):
    """A directory with a file two levels down, and something outside it."""
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_text("inside")
    (tmp_path / "outside").write_text("outside")
    return root


def read(root, relative: str) -> str:
    """The text of a file below root."""
    with (
        filetrees.open_beneath(root, relative, os.O_RDONLY) as opened,
        open(opened.fileno(), closefd=False) as file,
    ):
        return file.read()


def test_a_path_below_is_opened(root):
    """From a path and from a descriptor, and close-on-exec."""
    assert read(root, "a/b/file") == "inside"
    with filetrees.open_directory(root) as opened:
        assert read(opened, "a/b/file") == "inside"
    with filetrees.open_beneath(root, "a") as opened:
        assert not os.get_inheritable(opened.fileno())


def test_a_file_is_created(root):
    """With the mode asked for."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    filetrees.open_beneath(root, "a/new", flags, mode=0o600).close()
    assert (root / "a" / "new").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("relative", ["../outside", "a/../../outside", "/etc/passwd", "..", "a/b/../../.."])
def test_nothing_leads_out(root, relative):
    """By dots or from the top."""
    with pytest.raises(StepError) as caught:
        filetrees.open_beneath(root, relative)
    assert (caught.value.errno, caught.value.step) == (errno.EXDEV, "openat2")


@pytest.mark.parametrize("target", ["b", "/", "/etc", "../../outside", ".."])
def test_symlinks_on_the_way_are_refused(root, target):
    """Even those that stay inside: an image could turn them."""
    (root / "a" / "link").symlink_to(target)
    for relative in ("a/link/file", "a/link"):
        with pytest.raises(StepError) as caught:
            filetrees.open_beneath(root, relative, os.O_RDONLY)
        assert caught.value.errno == errno.ELOOP
        assert caught.value.filename == str(root / relative)


def test_magic_links_are_refused():
    """/proc/self/root leads to the host's root."""
    with pytest.raises(StepError) as caught:
        filetrees.open_beneath(Path(f"/proc/{os.getpid()}"), "root/etc")
    assert caught.value.errno == errno.ELOOP


def test_a_symlink_in_place_of_the_root_is_refused(tmp_path, root):
    """It would be the way out."""
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(StepError, match="open directory: Not a directory"):
        filetrees.open_beneath(tmp_path / "link", "a")


def test_what_is_not_there(root):
    """An ordinary ENOENT, with the whole path."""
    with pytest.raises(StepError) as caught:
        filetrees.open_beneath(root, "a/absent")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(root / "a" / "absent"))


def test_a_kernel_without_openat2(root):
    """There is no safe other way, so there is no fall-back."""
    with pytest.raises(StepError, match="openat2: Function not implemented"):
        with_faults(lambda: filetrees.open_beneath(root, "a"), Fault("openat2", errno.ENOSYS))
