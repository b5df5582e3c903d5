"""Mounts whose attributes stay as they are, into whatever user namespace they are handed."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from faults import Fault, with_faults

from nixsnap.mounts import features, filetrees, kernel
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import IdRange, OwnedFd

SHIFT = [IdRange(container_id=0, host_id=100_000, length=65_536)]


@pytest.fixture
def files(directory: Path) -> Path:
    """A source with a file, and a target."""
    (directory / "source").mkdir()
    (directory / "target").mkdir()
    (directory / "source/file").touch()
    return directory


def sealed(source: Path, **attributes) -> OwnedFd:
    """A read-only clone, locked."""
    with kernel.clone_tree(source, recursive=False) as tree:
        kernel.set_attributes(tree, readonly=True, nosuid=True, nodev=True, **attributes)
        return kernel.lock_tree(tree)


@pytest.mark.parametrize("attribute", ["readonly", "nosuid", "nodev"])
def test_a_locked_attribute_is_not_cleared(files, attribute):
    """Not before it is attached, not after, not of a clone: even root cannot, for the lock is on the mount."""
    with sealed(files / "source") as tree:
        with pytest.raises(StepError, match="mount_setattr: Operation not permitted"):
            kernel.set_attributes(tree, **{attribute: False})
        kernel.attach(tree, files / "target")
    with filetrees.open_directory(files / "target") as there, pytest.raises(StepError) as caught:
        kernel.set_attributes(there, **{attribute: False})
    assert caught.value.errno == errno.EPERM
    with kernel.clone_tree(files / "target", recursive=False) as clone, pytest.raises(StepError) as caught:
        kernel.set_attributes(clone, **{attribute: False})
    assert caught.value.errno == errno.EPERM
    kernel.unmount(files / "target")


def test_what_is_not_locked_is_the_attribute_that_was_not_set(files):
    """A mount can always be restricted further."""
    with sealed(files / "source") as tree:
        kernel.set_attributes(tree, noexec=True)
        kernel.attach(tree, files / "target")
    assert os.statvfs(files / "target").f_flag & os.ST_NOEXEC
    kernel.unmount(files / "target")


def test_without_the_lock_it_would_be(files):
    """What the lock is for: a user namespace's root clears the attributes of a mount that was moved into it."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ATTACH_AND_CLEAR]
    seen = {}
    with kernel.clone_tree(files / "source", recursive=False) as tree:
        kernel.set_attributes(tree, readonly=True)
        seen["plain"] = in_namespace(command, tree, files / "target")
    with sealed(files / "source") as tree:
        seen["locked"] = in_namespace(command, tree, files / "target")
    assert seen == {"plain": "rw", "locked": "ro"}


ATTACH_AND_CLEAR = """
"$PYTHON" -c '
import sys
from pathlib import Path
from nixsnap.mounts import filetrees, kernel
from nixsnap.mounts.values import OwnedFd
with OwnedFd(int(sys.argv[1])) as tree:
    kernel.attach(tree, Path(sys.argv[2]))
' "$1" "$2" || exit 1
mount -o remount,bind,rw "$2" 2>/dev/null
findmnt --noheadings --output VFS-OPTIONS "$2" | cut -d, -f1
"""


def in_namespace(command: list[str], tree: OwnedFd, target: Path) -> str:
    """Attach a mount in new namespaces, try to make it writable, and return what it is then."""
    done = subprocess.run(
        [*command, "sh", str(tree.fileno()), target],
        pass_fds=[tree.fileno()],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_the_id_map_stays(files):
    """An idmapped mount is still one."""
    if missing := features.idmapped_mounts(files).missing:
        pytest.skip(missing)
    with (
        kernel.create_user_namespace(SHIFT, SHIFT) as userns,
        sealed(files / "source", userns=userns) as tree,
    ):
        kernel.attach(tree, files / "target")
    assert (files / "target/file").stat().st_uid == 100_000
    kernel.unmount(files / "target")


def children() -> set[int]:
    """Our child processes; the session's daemons are among them."""
    return {child.pid for child in psutil.Process().children()}


def test_our_own_mounts_are_left_alone(files):
    """The namespaces that it takes are gone with their child; nothing shows up in ours, whose mounts may be shared."""
    before = children()
    sealed(files / "source").close()
    assert str(files) not in Path("/proc/self/mountinfo").read_text()
    assert children() == before


@pytest.mark.parametrize(
    ("fault", "number", "step"),
    [
        (
            Fault("mmap", errno.ENOMEM, argument=(3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)),
            errno.ENOMEM,
            "mmap",
        ),
        (Fault("clone3", errno.ENOSPC), errno.ENOSPC, "clone3 mount namespace"),
        (Fault("mount", errno.EPERM), errno.EPERM, "mount private"),
        (Fault("move_mount", errno.EINVAL), errno.EINVAL, "move_mount"),
        (Fault("fchdir", errno.EACCES), errno.EACCES, "fchdir"),
        (Fault("unshare", errno.ENOSPC), errno.ENOSPC, "unshare user and mount namespace"),
        (Fault("open_tree", errno.EMFILE), errno.EMFILE, "open_tree locked"),
    ],
)
def test_each_step_that_fails_is_named(files, fault, number, step):
    """Nothing stays open, mounted or running."""
    before = children()
    with kernel.clone_tree(files / "source", recursive=False) as tree, pytest.raises(StepError) as caught:
        with_faults(lambda: kernel.lock_tree(tree), fault)
    assert (caught.value.errno, caught.value.step) == (number, step)
    assert children() == before


def test_a_mount_that_is_attached(files):
    """It would have to be taken from where it is."""
    kernel.bind_mount(files / "source", files / "target", recursive=False, readonly=True)
    with filetrees.open_directory(files / "target") as tree, pytest.raises(StepError) as caught:
        kernel.lock_tree(tree)
    assert caught.value.step == "move_mount"
    kernel.unmount(files / "target")
    assert (files / "source/file").exists()
