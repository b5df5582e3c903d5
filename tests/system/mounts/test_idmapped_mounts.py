"""User namespaces for their maps, and mounts that go through them, on the machine's own file system."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from faults import Fault, with_faults

from nixsnap.mounts import features, filetrees, kernel
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import IdRange

SHIFT = [IdRange(container_id=0, host_id=100_000, length=65_536)]
WRITE_ONLY = os.O_WRONLY | os.O_CLOEXEC


CHILDREN: set[int] = set()


def children() -> set[int]:
    """Our processes; the fixtures of other tests may have some as well."""
    return {process.pid for process in psutil.Process().children()}


@pytest.fixture(autouse=True)
def _children_before(monkeypatch):
    monkeypatch.setitem(globals(), "CHILDREN", children())


@pytest.fixture
def files(directory: Path) -> Path:
    """Files of root and of user 1000, group 2000, and a target."""
    if missing := features.idmapped_mounts(directory).missing:
        pytest.skip(missing)
    (directory / "source").mkdir()
    (directory / "target").mkdir()
    for name, uid, gid in (("root", 0, 0), ("user", 1000, 2000), ("stranger", 70_000, 70_000)):
        (directory / "source" / name).touch()
        os.chown(directory / "source" / name, uid, gid)
    return directory


def owner(path: Path) -> tuple[int, int]:
    """User and group."""
    status = path.stat()
    return status.st_uid, status.st_gid


def idmap(files: Path, uids: list[IdRange], gids: list[IdRange], **attributes) -> Path:
    """Mount the source through these maps, and return where."""
    with (
        kernel.create_user_namespace(uids, gids) as userns,
        kernel.clone_tree(files / "source", recursive=False) as tree,
    ):
        kernel.set_attributes(tree, userns=userns, **attributes)
        kernel.attach(tree, files / "target")
    return files / "target"


def test_owners_are_shifted(files):
    """On disk nothing changes."""
    target = idmap(files, SHIFT, SHIFT)
    seen = owner(target / "root"), owner(target / "user")
    kernel.unmount(target)
    assert seen == ((100_000, 100_000), (101_000, 102_000))
    assert owner(files / "source" / "user") == (1000, 2000)


def test_several_ranges(files):
    """As containerd's labels may name them; users and groups apart."""
    uids = [
        IdRange(container_id=0, host_id=500_000, length=1),
        IdRange(container_id=1000, host_id=600_000, length=10),
    ]
    gids = [IdRange(container_id=0, host_id=700_000, length=65_536)]
    target = idmap(files, uids, gids)
    seen = owner(target / "root"), owner(target / "user")
    kernel.unmount(target)
    assert seen == ((500_000, 700_000), (600_000, 702_000))


def test_ids_outside_the_map_are_nobodys(files):
    """The overflow ids of /proc/sys/fs."""
    target = idmap(files, SHIFT, SHIFT)
    seen = owner(target / "stranger")
    kernel.unmount(target)
    overflow = tuple(int(Path(f"/proc/sys/fs/overflow{kind}").read_text()) for kind in ("uid", "gid"))
    assert seen == overflow


def test_writes_land_with_the_ids_on_disk(files):
    """A file that the container's root makes is root's below."""
    target = idmap(files, SHIFT, SHIFT)
    (files / "source").chmod(0o777)
    program = "import os; os.setgid(101000); os.setuid(101000); open('new', 'w')"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=target)
    kernel.unmount(target)
    assert owner(files / "source" / "new") == (1000, 1000)


def test_with_other_attributes_in_the_same_step(files):
    """A store clone is idmapped and read-only at once."""
    target = idmap(files, SHIFT, SHIFT, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    kernel.unmount(target)


def test_an_idmapped_mount_is_not_idmapped_again(files):
    """The kernel allows it once."""
    with (
        kernel.create_user_namespace(SHIFT, SHIFT) as userns,
        kernel.clone_tree(files / "source", recursive=False) as tree,
    ):
        kernel.set_attributes(tree, userns=userns)
        with pytest.raises(StepError) as caught:
            kernel.set_attributes(tree, userns=userns)
    assert (caught.value.errno, caught.value.step) == (errno.EPERM, "mount_setattr")


def test_an_attached_mount_is_not_idmapped(files):
    """It has users already; hence detached trees."""
    kernel.bind_mount(files / "source", files / "target", recursive=False, readonly=False)
    with (
        kernel.create_user_namespace(SHIFT, SHIFT) as userns,
        filetrees.open_directory(files / "target") as tree,
        pytest.raises(StepError, match="mount_setattr: Invalid argument"),
    ):
        kernel.set_attributes(tree, userns=userns)
    kernel.unmount(files / "target")


def test_a_file_system_that_cannot_be_idmapped():
    """procfs, here; the feature names the path."""
    missing = features.idmapped_mounts(Path("/proc")).missing
    assert missing == "/proc: mount_setattr: Invalid argument"


def test_a_descriptor_that_is_no_user_namespace(files):
    """EINVAL, not somebody's map."""
    with (
        filetrees.open_directory(files) as plain,
        kernel.clone_tree(files / "source", recursive=False) as tree,
        pytest.raises(StepError, match="mount_setattr: Invalid argument"),
    ):
        kernel.set_attributes(tree, userns=plain)


def test_the_namespace_has_its_maps_and_no_process(files):
    """A process that enters it sees the ids inside; no child of ours is left."""
    with kernel.create_user_namespace(SHIFT, SHIFT) as userns:
        assert children() == CHILDREN
        shown = subprocess.run(
            ["nsenter", f"--user=/proc/{os.getpid()}/fd/{userns.fileno()}", "cat", "/proc/self/uid_map"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    assert [int(number) for number in shown.split()] == [0, 100_000, 65_536]
    assert files.exists()


def test_the_most_ranges_that_there_can_be():
    """user_namespaces(7): 340 lines since Linux 4.15, and a page of text."""
    ranges = [IdRange(container_id=10 * n, host_id=100_000 + n, length=1) for n in range(241)]
    kernel.create_user_namespace(ranges[:240], ranges[:240]).close()


@pytest.mark.parametrize(
    ("uids", "gids", "step"),
    [
        (SHIFT * 2, SHIFT, "write uid_map"),
        (SHIFT, SHIFT * 2, "write gid_map"),
        ([], SHIFT, "write uid_map"),
        (SHIFT, [IdRange(container_id=n, host_id=n, length=1) for n in range(341)], "write gid_map"),
    ],
)
def test_maps_that_the_kernel_refuses(uids, gids, step):
    """Ranges that overlap, none, too many."""
    with pytest.raises(StepError) as caught:
        kernel.create_user_namespace(uids, gids)
    assert (caught.value.errno, caught.value.step) == (errno.EINVAL, step)
    assert children() == CHILDREN


@pytest.mark.parametrize(
    ("fault", "number", "step"),
    [
        (Fault("clone3", errno.ENOSPC), errno.ENOSPC, "clone3 user namespace"),
        (Fault("write", errno.EPERM), errno.EPERM, "write uid_map"),
        (Fault("write", 0), errno.EIO, "write uid_map"),
        (Fault("openat", errno.EMFILE, argument=(2, WRITE_ONLY)), errno.EMFILE, "write uid_map"),
        (Fault("openat", errno.EMFILE, argument=(2, os.O_CLOEXEC)), errno.EMFILE, "open user namespace"),
    ],
)
def test_each_step_that_fails_is_named_and_leaves_no_child(fault, number, step):
    """Whatever happens, the child is killed and reaped."""
    with pytest.raises(StepError) as caught:
        with_faults(lambda: kernel.create_user_namespace(SHIFT, SHIFT), fault)
    assert (caught.value.errno, caught.value.step) == (number, step)
    assert children() == CHILDREN


def test_many_threads_at_once():
    """Each has its own child, and waits for no other's."""
    errors = []

    def create() -> None:
        try:
            for _ in range(20):
                kernel.create_user_namespace(SHIFT, SHIFT).close()
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(daemon=True, target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert children() == CHILDREN


def test_the_child_is_invisible_to_wait():
    """Code elsewhere in the daemon that waits for any child, or for SIGCHLD, never sees ours."""
    # In a process of its own, since this one may have other children.
    program = """
import os
from nixsnap.mounts import filetrees, kernel
from nixsnap.mounts.values import IdRange
one = [IdRange(container_id=0, host_id=0, length=1)]
with kernel.create_user_namespace(one, one):
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child")
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "no child\n"


def test_no_process_may_be_started():
    """RLIMIT_NPROC does not stop root; so the limit on namespaces stands in, in a user namespace of its own."""
    program = """
from pathlib import Path
from nixsnap.mounts import filetrees, kernel
from nixsnap.mounts.values import IdRange
Path("/proc/sys/user/max_user_namespaces").write_text("0")
one = [IdRange(container_id=0, host_id=0, length=1)]
try:
    kernel.create_user_namespace(one, one)
except OSError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "clone3 user namespace: No space left on device"
    assert resource.getrlimit(resource.RLIMIT_NPROC)
