"""Overlays whose lower layers show mapped owners, in each way that kernels need it done."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import Fault, with_faults
from lab import mounts_below
from overlays import overlay
from trees import names

from nixsnap.errors import FailedPreconditionError
from nixsnap.mounts import features, idmapped, kernel, overlayfs
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import IdMapping, IdRange

FSCONFIG_SET_FD = 5  # linux/mount.h
NO_LAYERS_BY_DESCRIPTOR = Fault("fsconfig", errno.EINVAL, argument=(1, FSCONFIG_SET_FD))


def shifted(first: int, length: int = 65_536) -> IdMapping:
    """Root and those after it, from this id on; groups a hundred higher."""
    return IdMapping(
        uids=(IdRange(container_id=0, host_id=first, length=length),),
        gids=(IdRange(container_id=0, host_id=first + 100, length=length),),
    )


@pytest.fixture
def owned(layers: Path) -> Path:
    """The layers of `layers`, with files of several owners."""
    for name, uid, gid in (("root", 0, 0), ("user", 1000, 2000), ("stranger", 70_000, 70_000)):
        (layers / "lower1" / name).write_text(name)
        os.chown(layers / "lower1" / name, uid, gid)
    return layers


def mount(
    layers: Path,
    mapping: IdMapping,
    *,
    target: Path | None = None,
    trees: list[Path] | None = None,
    **changes,
) -> Path:
    """Mount the overlay with these ids, and return where."""
    target = target or layers / "target"
    with idmapped.user_namespace(mapping) as userns:
        idmapped.mount_idmapped(
            overlay(layers, **changes),
            target,
            trees=trees or [layers],
            userns=userns,
            staging=layers / "staging",
        )
    return target


@pytest.fixture(params=["detached", "attached", "mount(2)"])
def way(request, monkeypatch):
    """How layers reach overlayfs: by descriptor (Linux 6.15), by a path for the moment, or in a page of options."""
    if request.param == "detached":
        return mount
    if request.param == "attached":
        return lambda *args, **kwargs: with_faults(lambda: mount(*args, **kwargs), NO_LAYERS_BY_DESCRIPTOR)
    monkeypatch.setattr(overlayfs, "appends_lowerdirs", lambda: False)
    return mount


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_owners_of_lower_layers_are_mapped(owned, way):
    """Only in the overlay: on disk they are as they were, and no mount but the overlay is left."""
    target = way(owned, shifted(100_000))
    assert owner(target / "root") == (100_000, 100_100)
    assert owner(target / "user") == (101_000, 102_100)
    assert owner(target / "second") == (100_000, 100_100)
    assert [entry.point for entry in mounts_below(owned)] == [target]
    kernel.unmount(target)
    assert owner(owned / "lower1" / "user") == (1000, 2000)
    assert not list(owned.glob("staging*"))


def test_writes_belong_to_the_mapped_ids(owned, way):
    """On disk: the upper layer is not mapped. What is copied up keeps the owner that it showed."""
    target = way(owned, shifted(100_000))
    for path in (owned / "upper", target):
        os.chown(path, 100_000, 100_100)
    program = (
        "import os; os.setgid(100100); os.setuid(100000); open('new', 'w'); open('root', 'a').write('more')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=target)
    kernel.unmount(target)
    assert owner(owned / "upper" / "new") == (100_000, 100_100)
    assert owner(owned / "upper" / "root") == (100_000, 100_100)
    assert (owned / "upper" / "root").read_text() == "rootmore"
    assert (owned / "lower1" / "root").read_text() == "root"


def test_ids_outside_the_map_are_nobodys(owned, way):
    """A layer's file of user 70000, in a container with 65536 ids."""
    target = way(owned, shifted(100_000))
    overflow = tuple(int(Path(f"/proc/sys/fs/overflow{kind}").read_text()) for kind in ("uid", "gid"))
    assert owner(target / "stranger") == overflow
    kernel.unmount(target)


def test_two_mappings_of_the_same_layers_at_once(owned, way):
    """Read-only here; each shows its own ids."""
    second = owned / "second-target"
    second.mkdir()
    bare = {"upperdir": None, "workdir": None}
    way(owned, shifted(100_000), **bare)
    way(owned, shifted(300_000), target=second, **bare)
    assert owner(owned / "target" / "user") == (101_000, 102_100)
    assert owner(second / "user") == (301_000, 302_100)
    kernel.unmount(owned / "target")
    kernel.unmount(second)


def test_layers_in_several_trees(owned, way):
    """Each tree is cloned by itself: a mount inside one would not come along, and here one tree is a layer."""
    trees = [owned / "lower1", owned / "lower2"]
    target = way(owned, shifted(100_000), trees=trees)
    assert owner(target / "second") == (100_000, 100_100)
    assert (target / "both").read_text() == "first"
    kernel.unmount(target)


def test_data_only_layers_come_along(owned, way):
    """They are looked up in the trees too, as a file that is not there shows."""
    with pytest.raises(StepError) as caught:
        way(owned, shifted(100_000), datadirs=(owned / "absent",), options=("metacopy=on",))
    assert caught.value.errno == errno.ENOENT
    assert mounts_below(owned) == []
    assert not list(owned.glob("staging*"))


def test_a_long_relative_path_is_a_layer(owned, way):
    """By descriptor there is no limit, nor where paths go through a shorter name."""
    deep = owned.joinpath(*["x" * 100] * 8)
    deep.mkdir(parents=True)
    (deep / "below").touch()
    target = way(owned, shifted(100_000), lowerdirs=(owned / "lower1", deep))
    assert "below" in names(target)
    kernel.unmount(target)


def test_an_error_that_is_not_about_ids_stays_what_it_is(owned, way):
    """A missing work directory is named after both ways were tried."""
    with pytest.raises(StepError) as caught:
        way(owned, shifted(100_000), workdir=owned / "absent")
    assert caught.value.errno == errno.ENOENT
    assert mounts_below(owned) == []
    assert not list(owned.glob("staging*"))


def test_layers_that_overlap(owned, way):
    """EINVAL for another reason: said by the second way, when the first has given up, and nothing stays."""
    inside = owned / "lower1" / "inside"
    inside.mkdir()
    with pytest.raises(StepError, match="overlayfs gives its reason in the kernel log"):
        way(owned, shifted(100_000), lowerdirs=(owned / "lower1", inside))
    assert mounts_below(owned) == []
    assert not list(owned.glob("staging*"))


def test_a_file_system_that_cannot_be_idmapped(owned, way):
    """Path, type and way out."""
    with pytest.raises(FailedPreconditionError) as caught:
        way(owned, shifted(100_000), lowerdirs=(Path("/proc/self"), owned / "lower1"), trees=[Path("/proc")])
    assert "/proc is on a file system (proc) that cannot be mounted with mapped ids" in str(caught.value)
    assert "slow_chown = true" in str(caught.value)
    assert mounts_below(owned) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOSYS])
def test_a_kernel_that_cannot(owned, number):
    """Too old, or the owner of the file system is somebody else."""
    with pytest.raises(FailedPreconditionError, match=r"cannot be mounted with mapped ids: mount_setattr"):
        with_faults(lambda: mount(owned, shifted(1)), Fault("mount_setattr", number))


def test_another_error_of_mount_setattr(owned):
    """It says nothing of what can be done here."""
    with pytest.raises(StepError, match="Cannot allocate memory"):
        with_faults(lambda: mount(owned, shifted(1)), Fault("mount_setattr", errno.ENOMEM))


def test_no_user_namespace_may_be_made(owned):
    """sysctl user.max_user_namespaces = 0 gives ENOSPC, which is no full disk."""
    with pytest.raises(FailedPreconditionError, match=r"max_user_namespaces"):
        with_faults(lambda: mount(owned, shifted(1)), Fault("clone3", errno.ENOSPC))
    with pytest.raises(StepError, match="Cannot allocate memory"):
        with_faults(lambda: mount(owned, shifted(1)), Fault("clone3", errno.ENOMEM))


def test_a_clone_that_cannot_be_attached(owned):
    """Nothing of it stays."""
    with pytest.raises(StepError, match="move_mount: Cannot allocate memory"):
        with_faults(
            lambda: mount(owned, shifted(1)), NO_LAYERS_BY_DESCRIPTOR, Fault("move_mount", errno.ENOMEM)
        )
    assert mounts_below(owned) == []
    assert not list(owned.glob("staging*"))


def test_something_is_where_a_clone_should_be_attached(owned):
    """It is left alone."""
    (owned / "staging-1").touch()
    trees = [owned / "lower1", owned / "lower2"]
    with pytest.raises(FileExistsError, match="staging-1"):
        with_faults(lambda: mount(owned, shifted(1), trees=trees), NO_LAYERS_BY_DESCRIPTOR)
    assert mounts_below(owned) == []
    assert [path.name for path in owned.glob("staging*")] == ["staging-1"]


def test_the_overlay_cannot_be_attached(owned):
    """move_mount is the last step of the detached way."""
    with pytest.raises(StepError) as caught:
        with_faults(lambda: mount(owned, shifted(1)), Fault("move_mount", errno.ENOMEM))
    assert (caught.value.step, caught.value.filename) == ("move_mount", str(owned / "target"))


def test_the_feature(directory):
    """Real root has it on any usual file system; the answer names what is missing elsewhere."""
    assert features.idmapped_layers(directory)
    missing = with_faults(
        lambda: features.idmapped_layers(directory), Fault("mount_setattr", errno.EINVAL)
    ).missing
    assert "cannot be mounted with mapped ids" in missing
    assert list(directory.iterdir()) == []
