"""probe_mount and directory_has_types on what every machine has."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from faults import Fault, with_faults

from nixsnap.mounts import filetrees, kernel
from nixsnap.mounts.errors import StepError

PROC_SUPER_MAGIC = 0x9FA0  # linux/magic.h


def mount_ids() -> dict[int, Path]:
    """Mount points by mount id, as the kernel lists them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {int(line.split()[0]): Path(line.split()[4]) for line in lines}


def test_a_mount_point_is_the_root_of_a_mount():
    """/proc is one on every machine."""
    probe = kernel.probe_mount(Path("/proc"))
    assert probe.is_root
    assert probe.filesystem_magic == PROC_SUPER_MAGIC
    assert mount_ids()[probe.mount_id] == Path("/proc")


def test_what_lies_in_a_mount_is_not_its_root(tmp_path):
    """It has the mount's number all the same."""
    probe = kernel.probe_mount(tmp_path)
    assert not probe.is_root
    assert tmp_path.is_relative_to(mount_ids()[probe.mount_id])


def test_a_symlink_is_not_followed(tmp_path):
    """What counts is where the link lies."""
    (tmp_path / "link").symlink_to("/proc")
    assert kernel.probe_mount(tmp_path / "link") == kernel.probe_mount(tmp_path)


def test_overlayfs_has_its_number():
    """linux/magic.h: OVERLAYFS_SUPER_MAGIC."""
    assert kernel.OVERLAYFS_MAGIC == 0x794C7630


@pytest.mark.parametrize(
    ("fault", "number", "step"),
    [
        (Fault("statx", errno.ENOSYS), errno.ENOSYS, "statx"),
        (
            Fault("statx", 0),
            errno.EOPNOTSUPP,
            "statx mount id",
        ),  # as before Linux 5.8: it answers, without them
        (Fault("fstatfs", errno.EIO), errno.EIO, "fstatfs"),
    ],
)
def test_each_step_that_fails_is_named(tmp_path, fault, number, step):
    """With the path."""
    with pytest.raises(StepError) as caught:
        with_faults(lambda: kernel.probe_mount(tmp_path), fault)
    assert (caught.value.errno, caught.value.step, caught.value.filename) == (number, step, str(tmp_path))


def test_what_is_not_there(tmp_path):
    """A view that has not been mounted yet, or was removed."""
    with pytest.raises(StepError) as caught:
        kernel.probe_mount(tmp_path / "absent")
    assert (caught.value.errno, caught.value.step) == (errno.ENOENT, "open")


def test_entries_have_types(tmp_path):
    """Here they do, else containers could not run at all; tests/system has a file system where they do not."""
    (tmp_path / "entry").touch()
    assert filetrees.directory_has_types(tmp_path)


def test_an_empty_directory_cannot_tell(tmp_path):
    """Its own and its parent's entry do not count: XFS without ftype knows their type."""
    with pytest.raises(StepError) as caught:
        filetrees.directory_has_types(tmp_path)
    assert (caught.value.errno, caught.value.step) == (errno.ENOENT, "getdents64")


def test_reading_a_directory_can_fail(tmp_path):
    """The errno is the kernel's."""
    (tmp_path / "entry").touch()
    with pytest.raises(StepError, match="getdents64: Input/output error"):
        with_faults(lambda: filetrees.directory_has_types(tmp_path), Fault("getdents64", errno.EIO))


def test_a_directory_opened_is_close_on_exec(tmp_path):
    """As all descriptors of ours."""
    with filetrees.open_directory(tmp_path) as opened:
        assert not os.get_inheritable(opened.fileno())
