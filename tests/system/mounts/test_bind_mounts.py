"""Detached clones, attributes, attaching, unmounting."""

from __future__ import annotations

import errno
import subprocess
import time
from pathlib import Path

import pytest
from faults import Fault, with_faults
from lab import Mount, mounts_below
from trees import names, through

from nixsnap.mounts import filetrees, kernel
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.operations import BindMount
from nixsnap.mounts.values import OwnedFd, Propagation


@pytest.fixture
def tree(directory: Path) -> Path:
    """A source with a tmpfs mounted below it, and a target."""
    (directory / "source" / "below").mkdir(parents=True)
    (directory / "source" / "file").write_text("source")
    (directory / "target").mkdir()
    (directory / "target-file").touch()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory / "source" / "below"], check=True)
    (directory / "source" / "below" / "deep").write_text("deep")
    yield directory
    kernel.detach(directory / "source" / "below")


def targets(tree: Path) -> list[Mount]:
    """What is mounted on the target and below it."""
    return mounts_below(tree / "target")


def off(tree: Path) -> None:
    """Take the target's mounts off."""
    kernel.detach(tree / "target")


def test_a_clone_is_detached(tree):
    """Nothing shows until it is attached."""
    with kernel.clone_tree(tree / "source", recursive=False) as clone:
        assert names(through(clone)) == ["below", "file"]
        assert targets(tree) == []


def test_a_clone_that_is_not_recursive_leaves_out_what_is_mounted_below(tree):
    """Its directory is there, empty."""
    BindMount(source=tree / "source", recursive=False, readonly=False).mount(tree / "target")
    seen = names(tree / "target" / "below")
    off(tree)
    assert seen == []


def test_a_recursive_one_does_not(tree):
    """Two mounts become two."""
    BindMount(source=tree / "source", readonly=False).mount(tree / "target")
    seen = (tree / "target" / "below" / "deep").read_text(), len(targets(tree))
    off(tree)
    assert seen == ("deep", 2)


def test_readonly_covers_what_is_mounted_below(tree):
    """mount(2) would leave the lower mount writable."""
    BindMount(source=tree / "source", readonly=True).mount(tree / "target")
    for place in (tree / "target" / "new", tree / "target" / "below" / "new"):
        with pytest.raises(OSError, match="Read-only"):
            place.touch()
    off(tree)
    (tree / "source" / "new").touch()  # the source itself is as it was
    (tree / "source" / "below" / "new").touch()


def test_a_file_is_bound_onto_a_file(tree):
    """A store path may be one."""
    target = tree / "target-file"
    kernel.bind_mount(tree / "source" / "file", target, recursive=False, readonly=True)
    assert target.read_text() == "source"
    with pytest.raises(OSError, match="Read-only"):
        target.write_text("x")
    kernel.unmount(target)
    assert target.read_text() == ""


def test_a_source_that_is_a_symlink_is_refused(tree):
    """A store path that points to the host's root must not show it."""
    (tree / "link").symlink_to("/")
    with pytest.raises(StepError) as caught:
        kernel.bind_mount(tree / "link", tree / "target", recursive=True, readonly=True)
    error = caught.value
    assert (error.errno, error.step, error.filename) == (errno.ELOOP, "open_tree", str(tree / "link"))
    assert targets(tree) == []


def test_a_target_that_is_a_symlink_is_refused(tree):
    """To a directory, to a file, to nothing."""
    for number, to in enumerate(("target", "target-file", "nowhere")):
        link = tree / f"link{number}"
        link.symlink_to(tree / to)
        for source in (tree / "source", tree / "source" / "file"):
            with pytest.raises(StepError) as caught:
                kernel.bind_mount(source, link, recursive=False, readonly=False)
            assert (caught.value.errno, caught.value.step) == (errno.ELOOP, "open mount point")


def test_a_directory_does_not_go_onto_a_file(tree):
    """Nor the other way round; which of the two errnos it is has changed between kernels."""
    for source, target in (("source", "target-file"), ("source/file", "target")):
        with pytest.raises(StepError) as caught:
            kernel.bind_mount(tree / source, tree / target, recursive=False, readonly=False)
        assert caught.value.step == "move_mount"
        assert caught.value.errno in {errno.ENOTDIR, errno.EINVAL}


@pytest.mark.parametrize(("source", "target"), [("absent", "target"), ("source", "absent")])
def test_what_is_not_there_is_named(tree, source, target):
    """Source or target."""
    with pytest.raises(StepError) as caught:
        kernel.bind_mount(tree / source, tree / target, recursive=False, readonly=False)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tree / "absent"))


def test_by_descriptors(tree):
    """Both ends opened beneath a root, so that no image's symlink can turn them."""
    with (
        filetrees.open_beneath(tree, "source") as source,
        filetrees.open_beneath(tree, "target") as target,
    ):
        kernel.bind_mount(source, target, recursive=False, readonly=False)
    assert (tree / "target" / "file").exists()
    off(tree)


def test_an_attached_mount_can_be_given_up_by_its_creator(tree):
    """Closing the descriptor of an attached mount leaves it attached."""
    with kernel.clone_tree(tree / "source", recursive=False) as clone:
        kernel.attach(clone, tree / "target")
    assert len(targets(tree)) == 1
    off(tree)


@pytest.mark.parametrize("attribute", ["readonly", "nosuid", "nodev", "noexec", "noatime", "nosymfollow"])
def test_an_attribute_is_set_and_cleared(tree, attribute):
    """Each by itself, as /proc/self/mountinfo shows it."""
    shown = "ro" if attribute == "readonly" else attribute
    with kernel.clone_tree(tree / "source", recursive=False) as clone:
        kernel.attach(clone, tree / "target")
        before = targets(tree)[0].options.split(",")[:6]
        kernel.set_attributes(clone, **{attribute: True})
        during = targets(tree)[0].options.split(",")
        kernel.set_attributes(clone, **{attribute: False})
        after = targets(tree)[0].options.split(",")[:6]
    off(tree)
    assert shown in during
    assert shown not in before
    assert after == before


def test_attributes_that_are_not_named_stay(tree):
    """None is neither yes nor no."""
    with kernel.clone_tree(tree / "source", recursive=False) as clone:
        kernel.set_attributes(clone, nosuid=True, nodev=True)
        kernel.set_attributes(clone, noexec=True, nodev=False)
        kernel.attach(clone, tree / "target")
    options = set(targets(tree)[0].options.split(","))
    off(tree)
    assert {"nosuid", "noexec"} <= options
    assert "nodev" not in options


@pytest.mark.parametrize(
    ("propagation", "field"),
    [
        (Propagation.SHARED, "shared:"),
        (Propagation.PRIVATE, None),
        (Propagation.UNBINDABLE, "unbindable"),
    ],
)
def test_propagation_is_set(tree, propagation, field):
    """As the optional fields of /proc/self/mountinfo show it."""
    with kernel.clone_tree(tree / "source", recursive=False) as clone:
        kernel.attach(clone, tree / "target")
        kernel.set_attributes(clone, propagation=Propagation.SHARED)
        kernel.set_attributes(clone, propagation=propagation)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = [line for line in lines if line.split()[4] == str(tree / "target")]
    off(tree)
    optional = line.split(" - ")[0].split()[6:]
    assert [text.startswith(field) for text in optional] == [True] if field else optional == []


def test_a_slave_receives(tree):
    """What is mounted below the source appears below the target, and not the other way round."""
    with kernel.clone_tree(tree / "source", recursive=False) as source:
        kernel.attach(source, tree / "source")
        kernel.set_attributes(source, propagation=Propagation.SHARED)
    with kernel.clone_tree(tree / "source", recursive=False) as clone:
        kernel.set_attributes(clone, propagation=Propagation.SLAVE)
        kernel.attach(clone, tree / "target")
    kernel.bind_mount(tree / "target-file", tree / "source" / "file", recursive=False, readonly=False)
    received = (tree / "target" / "file").read_text()
    kernel.unmount(tree / "source" / "file")
    off(tree)
    kernel.detach(tree / "source")
    assert received == ""


def test_setting_attributes_recursively_is_all_or_nothing(tree):
    """A mount below that refuses keeps the upper one as it was: here, one that is not a mount's root."""
    with filetrees.open_directory(tree / "target") as plain, pytest.raises(StepError) as caught:
        kernel.set_attributes(plain, readonly=True, recursive=True)
    assert (caught.value.errno, caught.value.step) == (errno.EINVAL, "mount_setattr")


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (Fault("open_tree", errno.ENOSYS), "open_tree"),
        (Fault("mount_setattr", errno.ENOSYS), "mount_setattr"),
        (Fault("move_mount", errno.ENOSYS), "move_mount"),
    ],
)
def test_an_old_kernel_is_told_by_its_missing_call(tree, fault, step):
    """Linux 5.2, or 5.12 for mount_setattr; nothing is mounted."""

    def attempt() -> None:
        kernel.bind_mount(tree / "source", tree / "target", recursive=True, readonly=True)

    with pytest.raises(StepError) as caught:
        with_faults(attempt, fault)
    assert (caught.value.errno, caught.value.step) == (errno.ENOSYS, step)
    assert targets(tree) == []


def test_looking_at_what_was_opened_can_fail(tree):
    """fstat on the clone, and on the mount point."""
    faults = Fault("newfstatat", errno.EIO), Fault("fstat", errno.EIO)
    with pytest.raises(StepError, match="fstat tree: Input/output error"):
        with_faults(lambda: kernel.clone_tree(tree / "source", recursive=False), *faults)
    with (
        kernel.clone_tree(tree / "source", recursive=False) as clone,
        pytest.raises(StepError, match="fstat mount point: Input/output error"),
    ):
        with_faults(lambda: kernel.attach(clone, tree / "target"), *faults)


def test_a_mount_in_use_is_busy(tree):
    """unmount refuses, detach does not, and the user keeps it until done."""
    kernel.bind_mount(tree / "source", tree / "target", recursive=False, readonly=False)
    with (tree / "target" / "file").open() as held:
        with pytest.raises(StepError) as caught:
            kernel.unmount(tree / "target")
        assert (caught.value.errno, caught.value.step) == (errno.EBUSY, "umount2")
        kernel.detach(tree / "target")
        assert targets(tree) == []
        assert held.read() == "source"


def test_detach_takes_what_is_below_along(tree):
    """A view and what is mounted in it go together."""
    kernel.bind_mount(tree / "source", tree / "target", recursive=True, readonly=False)
    kernel.detach(tree / "target")
    assert targets(tree) == []


@pytest.mark.parametrize("take_off", [kernel.unmount, kernel.detach])
def test_what_is_not_a_mount_point(tree, take_off):
    """EINVAL; ENOENT for what is not there; both named."""
    with pytest.raises(StepError) as caught:
        take_off(tree / "target")
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(tree / "target"))
    with pytest.raises(StepError) as caught:
        take_off(tree / "absent")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("take_off", [kernel.unmount, kernel.detach])
def test_a_symlink_to_a_mount_point_is_not_followed(tree, take_off):
    """Else a link takes somebody else's mount off."""
    kernel.bind_mount(tree / "source", tree / "target", recursive=False, readonly=False)
    (tree / "link").symlink_to(tree / "target")
    with pytest.raises(StepError, match="umount2: Invalid argument"):
        take_off(tree / "link")
    assert len(targets(tree)) == 1
    off(tree)


def test_remove_tree_does_not_enter_a_mount(tree):
    """EBUSY, and what is mounted there keeps its files."""
    with pytest.raises(StepError) as caught:
        filetrees.remove_tree(tree / "source")
    assert (caught.value.errno, caught.value.step) == (errno.EBUSY, "unlinkat")
    assert "'below'" in caught.value.detail
    assert (tree / "source" / "below" / "deep").read_text() == "deep"
    with pytest.raises(StepError, match="unlinkat: Device or resource busy"):
        filetrees.remove_tree(tree / "source" / "below")


def test_disk_usage_enters_a_mount(tree):
    """containerd's walk does."""
    inside = filetrees.disk_usage(tree / "source" / "below").inodes
    assert inside == 2
    assert filetrees.disk_usage(tree / "source").inodes == 2 + inside


def test_many_times_without_a_trace(tree):
    """No mount and no descriptor is left by hundreds of mounts, half of which fail."""
    for _ in range(200):
        kernel.bind_mount(tree / "source", tree / "target", recursive=True, readonly=True)
        with pytest.raises(StepError):
            kernel.bind_mount(tree / "source", tree / "absent", recursive=True, readonly=True)
        kernel.detach(tree / "target")
    assert targets(tree) == []


def test_closing_a_detached_clone_frees_what_it_holds(tree):
    """Else the file system below could never be unmounted."""
    clone = kernel.clone_tree(tree / "source" / "below", recursive=False)
    assert isinstance(clone, OwnedFd)
    clone.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            kernel.unmount(tree / "source" / "below")
            break
        except StepError as error:  # the kernel finishes the unmount behind close(2)
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tree / "source" / "below"], check=True)
