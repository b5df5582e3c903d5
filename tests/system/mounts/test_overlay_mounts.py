"""Overlay mounts, by both interfaces of the kernel."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from faults import Fault, with_faults
from lab import mounts_below
from overlays import overlay
from trees import names, through

from nixsnap.mounts import filetrees, kernel, overlayfs
from nixsnap.mounts.errors import StepError

FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6  # linux/mount.h


@pytest.mark.usefixtures("interface")
class TestBothInterfaces:
    """What has to be the same whichever way the kernel is asked."""

    def test_layers_lie_over_each_other(self, layers):
        """The first lowerdir is the topmost, and writes go to upperdir."""
        target = layers / "target"
        overlay(layers).mount(target)
        assert (target / "both").read_text() == "first"
        assert (target / "second").read_text() == "second"
        (target / "new").write_text("new")
        (target / "second").unlink()
        kernel.unmount(target)
        assert (layers / "upper" / "new").read_text() == "new"
        assert (layers / "lower2" / "second").exists()

    def test_it_is_an_overlay_and_its_root(self, layers):
        """And mounted from "overlay", as mount(8) and containerd have it."""
        target = layers / "target"
        overlay(layers).mount(target)
        probe = kernel.probe_mount(target)
        (mount,) = mounts_below(layers)
        kernel.unmount(target)
        assert probe.is_root
        assert probe.filesystem_magic == kernel.OVERLAYFS_MAGIC
        assert probe.mount_id == mount.mount_id
        assert (mount.point, mount.fs_type, mount.source) == (target, "overlay", "overlay")

    def test_without_upperdir_it_is_read_only(self, layers):
        """There is nowhere to write to."""
        target = layers / "target"
        overlay(layers, upperdir=None, workdir=None).mount(target)
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        kernel.unmount(target)

    def test_readonly_with_an_upperdir(self, layers):
        """What is in upperdir shows, and nothing is added."""
        target = layers / "target"
        (layers / "upper" / "old").touch()
        overlay(layers, readonly=True).mount(target)
        assert (target / "old").exists()
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        (mount,) = mounts_below(layers)
        kernel.unmount(target)
        assert mount.options.split(",")[0] == "ro"

    def test_options_reach_the_file_system(self, layers):
        """With and without a value."""
        overlay(layers, options=("redirect_dir=nofollow", "userxattr")).mount(layers / "target")
        (mount,) = mounts_below(layers)
        kernel.unmount(layers / "target")
        assert {"redirect_dir=nofollow", "userxattr"} <= set(mount.options.split(","))

    @pytest.mark.parametrize(
        "name", ["a:b", "a,b", r"a\b", r"a\:b", "a b", "a\nb", "a=b", "::", r"\\", 'a"b']
    )
    def test_any_name_is_a_layer(self, layers, name):
        """No character of a path means anything to overlayfs."""
        lower, upper, work = (layers / name / part for part in ("lower", "upper", "work"))
        for part in (lower, upper, work):
            part.mkdir(parents=True)
        (lower / "below").touch()
        overlay(layers, lowerdirs=(lower,), upperdir=upper, workdir=work).mount(layers / "target")
        (layers / "target" / "above").touch()
        seen = names(layers / "target")
        kernel.unmount(layers / "target")
        assert seen == ["above", "below"]
        assert names(upper) == ["above"]
        assert names(work) == ["work"]

    def test_long_paths_are_layers(self, layers):
        """fsconfig(2) takes 255 bytes of text, mount(2) a page for all."""
        deep = layers.joinpath(*["x" * 250] * 8)
        lowers = [deep / str(number) for number in range(3)]
        for lower in (*lowers, deep / "upper", deep / "work"):
            lower.mkdir(parents=True)
        (lowers[2] / "below").touch()
        mount = overlay(layers, lowerdirs=lowers, upperdir=deep / "upper", workdir=deep / "work")
        mount.mount(layers / "target")
        seen = names(layers / "target")
        kernel.unmount(layers / "target")
        assert seen == ["below"]

    def test_a_hundred_layers(self, layers):
        """More than a page of paths."""
        lowers = [layers / f"layer-with-a-name-of-some-length-{number}" for number in range(100)]
        for lower in lowers:
            lower.mkdir()
            (lower / lower.name).touch()
        overlay(layers, lowerdirs=lowers).mount(layers / "target")
        seen = names(layers / "target")
        kernel.unmount(layers / "target")
        assert len(seen) == 100

    def test_data_only_layers_are_hidden(self, layers):
        """They only serve files that a layer above redirects to."""
        (layers / "data").mkdir()
        (layers / "data" / "hidden").touch()
        data_only = overlay(layers, datadirs=(layers / "data",), options=("metacopy=on",))
        data_only.mount(layers / "target")
        seen = names(layers / "target")
        kernel.unmount(layers / "target")
        assert seen == ["both", "second"]

    def test_a_target_that_is_a_symlink_is_refused(self, layers):
        """It would mount wherever the link points."""
        (layers / "link").symlink_to(layers / "target")
        with pytest.raises(StepError) as caught:
            overlay(layers).mount(layers / "link")
        assert (caught.value.errno, caught.value.step) == (errno.ELOOP, "open mount point")
        assert caught.value.filename == str(layers / "link")

    def test_a_target_that_is_not_there(self, layers):
        """It is named, and not a layer."""
        with pytest.raises(StepError) as caught:
            overlay(layers).mount(layers / "absent")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(layers / "absent"))

    def test_a_target_that_is_a_file(self, layers):
        """A directory cannot be mounted on it."""
        (layers / "file").touch()
        with pytest.raises(StepError, match=r"Not a directory|Invalid argument"):
            overlay(layers).mount(layers / "file")

    def test_a_target_by_descriptor(self, layers):
        """Opened beforehand, so that nobody can replace it."""
        with filetrees.open_beneath(layers, "target") as target:
            overlayfs.mount_overlay(target, lowerdirs=[layers / "lower1", layers / "lower2"])
        assert (layers / "target" / "both").exists()
        kernel.unmount(layers / "target")

    def test_an_unknown_option(self, layers):
        """EINVAL from either."""
        with pytest.raises(StepError) as caught:
            overlay(layers, options=("no-such-option=1",)).mount(layers / "target")
        assert caught.value.errno == errno.EINVAL

    def test_layers_that_overlap(self, layers):
        """The kernel's reason is in its log, and the error says so."""
        inside = layers / "lower1" / "inside"
        inside.mkdir()
        with pytest.raises(StepError, match="overlayfs gives its reason in the kernel log"):
            overlay(layers, lowerdirs=(layers / "lower1", inside)).mount(layers / "target")

    @pytest.mark.parametrize("missing", ["lower2", "upper", "work"])
    def test_a_layer_that_is_not_there(self, layers, missing):
        """ENOENT from either, and nothing is mounted."""
        (layers / missing).rename(layers / "elsewhere")
        with pytest.raises(StepError) as caught:
            overlay(layers).mount(layers / "target")
        assert caught.value.errno == errno.ENOENT

    def test_mounts_stack_and_come_off_in_turn(self, layers):
        """unmount takes the topmost."""
        target = layers / "target"
        lower1, lower2 = layers / "lower1", layers / "lower2"
        overlay(layers, lowerdirs=(lower1, lower2), upperdir=None, workdir=None).mount(target)
        overlay(layers, lowerdirs=(lower2, lower1), upperdir=None, workdir=None).mount(target)
        assert (target / "both").read_text() == "second"
        kernel.unmount(target)
        assert (target / "both").read_text() == "first"
        kernel.unmount(target)
        assert names(target) == []


@pytest.fixture
def appending() -> None:
    """The kernel has "lowerdir+"."""
    if not overlayfs.appends_lowerdirs():
        pytest.skip("this kernel does not know lowerdir+ (Linux 6.7)")


@pytest.mark.usefixtures("appending")
class TestDetachedMounts:
    """What fsopen and its kin can do."""

    def create(self, layers: Path, **changes):
        """A detached overlay of the usual directories."""
        mount = overlay(layers, **changes)
        return overlayfs.create_overlay(
            lowerdirs=mount.lowerdirs,
            datadirs=mount.datadirs,
            upperdir=mount.upperdir,
            workdir=mount.workdir,
            options=mount.options,
            readonly=mount.readonly,
        )

    def test_a_detached_mount_is_there_and_nowhere(self, layers):
        """It can be read through its descriptor, and goes with it."""
        with self.create(layers) as tree:
            assert names(through(tree)) == ["both", "second"]
            assert mounts_below(layers) == []
        overlay(layers).mount(layers / "target")  # upperdir is free again
        kernel.unmount(layers / "target")

    def test_five_hundred_layers(self, layers):
        """OVL_MAX_STACK, ten pages of paths."""
        lowers = [layers / f"layer-with-a-name-of-some-length-{number}" for number in range(500)]
        for lower in lowers:
            lower.mkdir()
        (lowers[-1] / "lowest").touch()
        with self.create(layers, lowerdirs=lowers) as tree:
            assert names(through(tree)) == ["lowest"]

    def test_one_layer_too_many_is_named(self, layers):
        """OVL_MAX_STACK is 500."""
        lowers = [layers / str(number) for number in range(501)]
        for lower in lowers:
            lower.mkdir()
        with pytest.raises(StepError) as caught:
            self.create(layers, lowerdirs=lowers)
        assert (caught.value.step, caught.value.filename) == ("fsconfig lowerdir+", str(lowers[500]))

    @pytest.mark.parametrize(
        ("field", "step"),
        [
            ("lowerdirs", "fsconfig lowerdir+"),
            ("datadirs", "fsconfig datadir+"),
            ("upperdir", "fsconfig upperdir"),
            ("workdir", "fsconfig workdir"),
        ],
    )
    @pytest.mark.parametrize("name", ["absent", "file", "long" * 60, r"back\slash"])
    def test_a_layer_that_is_refused_is_named(self, layers, field, step, name):
        """Step and path, in whichever way the path is handed over."""
        path = layers / name
        if name == "file":
            path.touch()
        value = (
            (layers / "lower1", path) if field == "lowerdirs" else (path,) if field == "datadirs" else path
        )
        with pytest.raises(StepError) as caught:
            self.create(layers, **{field: value})
        assert (caught.value.step, caught.value.filename) == (step, str(path))
        assert caught.value.errno in {errno.ENOENT, errno.ENOTDIR, errno.EINVAL}

    def test_an_unknown_option_comes_with_the_kernels_words(self, layers):
        """They wait on the file system context."""
        with pytest.raises(StepError) as caught:
            self.create(layers, options=("index=off", "no-such-option=1"))
        assert caught.value.step == "fsconfig option"
        assert "'no-such-option=1'" in caught.value.detail
        assert "Unknown parameter 'no-such-option'" in caught.value.detail

    def test_an_option_name_that_is_too_long(self, layers):
        """fsconfig(2) takes 255 bytes."""
        with pytest.raises(StepError, match="fsconfig option: Invalid argument"):
            self.create(layers, options=("x" * 256 + "=1",))

    def test_a_workdir_elsewhere_is_refused(self, layers):
        """It has to be beside upperdir."""
        with pytest.raises(StepError) as caught:
            self.create(layers, workdir=Path("/dev/shm"))
        assert (caught.value.errno, caught.value.step) == (errno.EINVAL, "fsconfig create")

    @pytest.mark.parametrize(
        ("fault", "step"),
        [
            (Fault("fsopen", errno.EPERM), "fsopen overlay"),
            (Fault("fsconfig", errno.ENOMEM, argument=(1, FSCONFIG_SET_STRING)), "fsconfig source"),
            (Fault("fsconfig", errno.EPERM, argument=(1, FSCONFIG_SET_FLAG)), "fsconfig ro"),
            (Fault("fsconfig", errno.EBUSY, argument=(1, FSCONFIG_CMD_CREATE)), "fsconfig create"),
            (Fault("fsmount", errno.EPERM), "fsmount"),
        ],
    )
    def test_each_step_that_fails_is_named(self, layers, fault, step):
        """With its errno."""
        with pytest.raises(StepError) as caught:
            with_faults(lambda: self.create(layers, readonly=True), fault)
        assert (caught.value.errno, caught.value.step) == (fault.errno, step)

    def test_the_last_step_fails(self, layers):
        """move_mount is the commit point: before it nothing was visible, so nothing has to be undone."""
        with pytest.raises(StepError) as caught:
            with_faults(lambda: overlay(layers).mount(layers / "target"), Fault("move_mount", errno.EINVAL))
        assert (caught.value.step, caught.value.filename) == ("move_mount", str(layers / "target"))
        assert mounts_below(layers) == []


class TestOnePageOfOptions:
    """What mount(2) can do, which old kernels have to make do with."""

    @pytest.fixture(autouse=True)
    def old(self, monkeypatch):
        """The kernel does not know lowerdir+."""
        monkeypatch.setattr(overlayfs, "appends_lowerdirs", lambda: False)

    def test_paths_are_shown_where_they_fit(self, layers):
        """In /proc/mounts, for people to read."""
        overlay(layers).mount(layers / "target")
        (mount,) = mounts_below(layers)
        kernel.unmount(layers / "target")
        assert f"upperdir={layers}/upper" in mount.options.split(",")

    def test_too_many_layers_for_a_page(self, layers):
        """Even descriptors' names do not fit; the error gives the numbers."""
        lowers = [layers / f"layer-with-a-name-of-some-length-{number}" for number in range(300)]
        for lower in lowers:
            lower.mkdir()
        with pytest.raises(StepError) as caught:
            overlay(layers, lowerdirs=lowers).mount(layers / "target")
        error = caught.value
        assert (error.errno, error.step, error.filename) == (
            errno.E2BIG,
            "mount overlay",
            str(layers / "target"),
        )
        page = os.sysconf("SC_PAGESIZE")
        expected = rf"302 layers need \d+ bytes of options, and mount\(2\) reads one page \({page}\)"
        assert re.fullmatch(expected, error.detail)

    def test_a_layer_that_is_not_there_is_named_if_it_is_opened(self, layers):
        """mount(2) itself does not say which."""
        lowers = [layers / f"layer-with-a-name-of-some-length-{number}" for number in range(150)]
        for lower in lowers[:-1]:
            lower.mkdir()
        with pytest.raises(StepError) as caught:
            overlay(layers, lowerdirs=lowers).mount(layers / "target")
        assert (caught.value.errno, caught.value.step) == (errno.ENOENT, "open layer")
        assert caught.value.filename == str(lowers[-1])

    def test_the_step_that_fails_is_named(self, layers):
        """With the target."""
        with pytest.raises(StepError) as caught:
            with_faults(lambda: overlay(layers).mount(layers / "target"), Fault("mount", errno.EPERM))
        assert (caught.value.errno, caught.value.step) == (errno.EPERM, "mount overlay")
        assert caught.value.filename == str(layers / "target")


class TestTheChoice:
    """Which interface is used, on kernels that are made to look older."""

    @pytest.fixture(autouse=True)
    def ask_again(self):
        """The answer is kept for the life of the process."""
        overlayfs.appends_lowerdirs.cache_clear()
        yield
        overlayfs.appends_lowerdirs.cache_clear()

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("fsopen", errno.ENOSYS),  # before Linux 5.2
            Fault("fsconfig", 0),  # before 6.5: any parameter is taken
            Fault("fsconfig", errno.EINVAL),  # 6.5 and 6.6: "lowerdir+" is unknown
        ],
    )
    def test_an_old_kernel_gets_mount_2(self, layers, fault):
        """It is not asked for more, and the overlay is there."""

        def attempt() -> None:
            assert not overlayfs.appends_lowerdirs()
            overlay(layers).mount(layers / "target")

        with_faults(attempt, fault)
        assert (layers / "target" / "second").exists()
        kernel.unmount(layers / "target")

    def test_a_new_kernel_does_not(self, layers):
        """mount(2) is not called at all."""
        if not overlayfs.appends_lowerdirs():
            pytest.skip("this kernel does not know lowerdir+ (Linux 6.7)")
        with_faults(lambda: overlay(layers).mount(layers / "target"), Fault("mount", errno.EPERM))
        kernel.unmount(layers / "target")

    @pytest.mark.parametrize("number", [errno.EPERM, errno.ENODEV, errno.EMFILE])
    def test_other_errors_are_errors(self, layers, number):
        """No right to mount, no overlayfs, no descriptors: mount(2) would not help."""
        with pytest.raises(StepError) as caught:
            with_faults(lambda: overlay(layers).mount(layers / "target"), Fault("fsopen", number))
        assert (caught.value.errno, caught.value.step) == (number, "fsopen overlay")

    def test_an_error_of_the_question_itself(self):
        """It is neither yes nor no."""
        with pytest.raises(StepError) as caught:
            with_faults(overlayfs.appends_lowerdirs, Fault("fsconfig", errno.ENOMEM))
        assert (caught.value.errno, caught.value.step) == (errno.ENOMEM, "fsconfig lowerdir+")

    def test_an_error_is_not_kept(self):
        """The next call asks again."""
        with pytest.raises(StepError):
            with_faults(overlayfs.appends_lowerdirs, Fault("fsopen", errno.EMFILE))
        assert overlayfs.appends_lowerdirs() in {True, False}


class TestForgettingNames:
    """A lower layer that is changed below a mounted overlay."""

    def test_names_are_looked_up_anew(self, layers):
        """A directory that was deleted and made again is empty through the overlay, until its name is forgotten."""
        target, deleted = layers / "target", layers / "lower2" / "again"
        deleted.mkdir()
        (deleted / "file").touch()
        overlay(layers).mount(target)
        assert names(target / "again") == ["file"]
        (deleted / "file").unlink()
        deleted.rmdir()
        deleted.mkdir()
        (deleted / "file").touch()
        assert names(target / "again") == []  # else there would be nothing to mend
        kernel.forget_names(target)
        assert names(target / "again") == ["file"]
        kernel.unmount(target)

    @pytest.mark.parametrize(("call", "step"), [("fspick", "fspick"), ("fsconfig", "fsconfig reconfigure")])
    def test_failures(self, layers, call, step):
        """Each step's error says which it was, and the overlay stays as it is."""
        target = layers / "target"
        overlay(layers).mount(target)
        with pytest.raises(StepError) as caught:
            with_faults(lambda: kernel.forget_names(target), Fault(call, errno.ENOSYS))
        assert (caught.value.errno, caught.value.step, caught.value.filename) == (
            errno.ENOSYS,
            step,
            str(target),
        )
        assert (target / "second").exists()
        kernel.unmount(target)

    def test_where_nothing_is_mounted(self, layers):
        """A plain directory has no names of its own to forget."""
        with pytest.raises(StepError) as caught:
            kernel.forget_names(layers / "target")
        assert (caught.value.errno, caught.value.step) == (errno.EINVAL, "fspick")
