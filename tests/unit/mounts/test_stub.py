"""fill_stub, as any user: overlay redirects go into a user attribute here."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest
from faults import Fault, with_faults

from nixsnap.mounts import filetrees, stubfill
from nixsnap.mounts.errors import StepError

XATTR = "user.overlay.redirect"
FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SOURCE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
COPY_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
NO_LINK = Fault("linkat", errno.EXDEV)
NO_CLONE = Fault("ioctl", errno.EOPNOTSUPP, argument=(1, FICLONE))


@pytest.fixture
def store(tmp_path):
    """A store with one entry of each kind."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "directory").mkdir()
    (store / "directory" / "inside").write_text("x")
    (store / "directory").chmod(0o555)
    (store / "file").write_bytes(b"text")
    (store / "file").chmod(0o444)
    (store / "link").symlink_to("/etc")
    os.mkfifo(store / "fifo")
    for name in ("directory", "file", "link"):
        os.utime(store / name, ns=(10**18, 1_000_000_001), follow_symlinks=False)
    yield store
    (store / "directory").chmod(0o755)


@pytest.fixture
def stub(tmp_path):
    """An empty directory to fill."""
    stub = tmp_path / "stub"
    stub.mkdir()
    return stub


def fill(stub: Path, store: Path, *names: str, xattr: str | None = XATTR, prefix: str = "/"):
    return stubfill.fill_stub(stub, store=store, names=names, redirect_xattr=xattr, redirect_prefix=prefix)


def test_a_directory_becomes_an_empty_one_that_redirects(stub, store):
    """It has the store's mode and time, and says where it really is."""
    counts = fill(stub, store, "directory")
    made = stub / "directory"
    assert counts.directories == 1
    assert list(made.iterdir()) == []
    assert os.getxattr(made, XATTR) == b"/directory"
    assert stat.S_IMODE(made.stat().st_mode) == 0o555
    assert made.stat().st_mtime_ns == 1_000_000_001


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_process_umask_does_not_matter(stub, store, mask):
    """Modes are the store's."""
    before = os.umask(mask)
    try:
        fill(stub, store, "directory")
    finally:
        os.umask(before)
    assert stat.S_IMODE((stub / "directory").stat().st_mode) == 0o555


def test_without_redirects_a_directory_is_just_empty(stub, store):
    """A mount point, for the bind kind."""
    fill(stub, store, "directory", xattr=None)
    assert os.listxattr(stub / "directory") == []


def test_the_redirect_has_the_prefix(stub, store):
    """The store may lie further down in its layer."""
    fill(stub, store, "directory", prefix="/nix/store/")
    assert os.getxattr(stub / "directory", XATTR) == b"/nix/store/directory"


def test_a_symlink_is_recreated_and_never_followed(stub, store):
    """A store path that points to the host's /etc stays a link: it shows nothing of the host."""
    counts = fill(stub, store, "link")
    made = stub / "link"
    assert counts.symlinks == 1
    assert made.is_symlink()
    assert made.readlink() == Path("/etc")
    assert made.lstat().st_mtime_ns == 1_000_000_001


def test_a_dangling_symlink_is_recreated(stub, store):
    """Where it leads is not our business."""
    (store / "dangling").symlink_to("/absent/" + "x" * 4000)
    assert fill(stub, store, "dangling").symlinks == 1
    assert (stub / "dangling").readlink() == Path("/absent/" + "x" * 4000)


def test_a_file_is_linked(stub, store):
    """It takes up no room."""
    counts = fill(stub, store, "file")
    assert (counts.linked, counts.files) == (1, 1)
    assert (stub / "file").stat().st_ino == (store / "file").stat().st_ino


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EPERM, errno.EMLINK])
@pytest.mark.parametrize("clone_error", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL])
def test_a_file_that_cannot_be_linked_or_cloned_is_copied(stub, store, error, clone_error):
    """Contents, mode and time are the store's."""
    faults = Fault("linkat", error), Fault("ioctl", clone_error, argument=(1, FICLONE))
    counts = with_faults(lambda: fill(stub, store, "file"), *faults)
    made = stub / "file"
    assert (counts.copied, counts.files) == (1, 1)
    assert made.read_bytes() == b"text"
    assert made.stat().st_ino != (store / "file").stat().st_ino
    assert stat.S_IMODE(made.stat().st_mode) == 0o444
    assert made.stat().st_mtime_ns == 1_000_000_001


def test_a_large_sparse_and_an_empty_file_are_copied(stub, store):
    """More than one call moves, and nothing at all."""
    with (store / "large").open("wb") as file:
        file.seek(3 * 2**20 + 1)
        file.write(b"end")
    (store / "empty").touch()
    counts = with_faults(lambda: fill(stub, store, "large", "empty"), NO_LINK, NO_CLONE)
    assert counts.copied == 2
    assert (stub / "large").read_bytes() == (store / "large").read_bytes()
    assert (stub / "empty").read_bytes() == b""


def test_a_file_of_another_file_system_is_copied(tmp_path):
    """No fault injected: /dev/shm is a tmpfs, which has neither links from elsewhere nor reflinks."""
    shm = Path("/dev/shm") / f"nixsnap-{os.getpid()}"
    if shm.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is on the file system of the temporary directory")
    shm.mkdir()
    try:
        (tmp_path / "file").write_bytes(b"text" * 1000)
        counts = fill(shm, tmp_path, "file")
        assert (shm / "file").read_bytes() == b"text" * 1000
    finally:
        filetrees.remove_tree(shm)
    assert counts.copied == 1


def test_many_names_in_one_call(stub, tmp_path):
    """Each gets its stand-in; the counts add up."""
    store = tmp_path / "many"
    store.mkdir()
    names = [f"{number:032}-name" for number in range(1000)]
    for number, name in enumerate(names):
        if number % 10:
            (store / name).mkdir()
        else:
            (store / name).symlink_to(name)
    counts = fill(stub, store, *names)
    assert (counts.directories, counts.symlinks) == (900, 100)
    assert sorted(path.name for path in stub.iterdir()) == names


def test_no_names_are_no_work(stub, store):
    """An empty closure is possible."""
    assert fill(stub, store).directories == 0
    assert list(stub.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc", "../store/file", "directory/inside", "directory/"]
)
def test_what_is_not_a_plain_name_is_refused(stub, store, name):
    """Nothing is looked at outside the store, nor made outside the stub."""
    with pytest.raises(StepError) as caught:
        fill(stub, store, "directory", name)
    error = caught.value
    assert (error.errno, error.step, error.filename) == (errno.EINVAL, "stub name", name)
    assert [path.name for path in stub.iterdir()] == ["directory"]


def test_a_name_too_long_is_refused(stub, store):
    """NAME_MAX is 255."""
    with pytest.raises(StepError, match="stub name: Invalid argument"):
        fill(stub, store, "x" * 256)


def test_names_in_any_bytes_are_taken(stub, store):
    """They are file names, not text."""
    name = os.fsdecode(b"\xff\xfe")
    (store / name).mkdir()
    assert fill(stub, store, name).directories == 1
    assert os.getxattr(stub / name, XATTR) == b"/\xff\xfe"


def test_an_entry_that_the_store_lacks(stub, store):
    """The name is told, and what came before it stays."""
    with pytest.raises(StepError) as caught:
        fill(stub, store, "directory", "absent", "link")
    error = caught.value
    assert (error.errno, error.step, error.filename) == (errno.ENOENT, "fstatat store entry", "absent")
    assert [path.name for path in stub.iterdir()] == ["directory"]


@pytest.mark.parametrize(
    ("name", "step"), [("directory", "mkdirat"), ("link", "symlinkat"), ("file", "linkat")]
)
def test_what_exists_is_an_error(stub, store, name, step):
    """Nothing is replaced: a closure names a path once."""
    (stub / name).touch()
    with pytest.raises(StepError) as caught:
        fill(stub, store, name)
    assert (caught.value.errno, caught.value.step) == (errno.EEXIST, step)


def test_a_special_file_is_refused(stub, store):
    """The Nix store has no pipes, devices or sockets."""
    with pytest.raises(StepError) as caught:
        fill(stub, store, "fifo")
    assert (caught.value.errno, caught.value.step) == (errno.EINVAL, "stub of a special file")
    assert list(stub.iterdir()) == []


def test_a_redirect_that_is_too_long_is_refused(stub, store):
    """Rather than cut short."""
    with pytest.raises(StepError, match="fsetxattr redirect: File name too long"):
        fill(stub, store, "directory", prefix="/" * 4096)


def test_directories_that_are_not_there(stub, store):
    """Both are named."""
    with pytest.raises(StepError, match="open directory: No such file or directory: '/absent'"):
        fill(Path("/absent"), store)
    with pytest.raises(StepError, match="open directory: No such file or directory: '/absent'"):
        fill(stub, Path("/absent"))


def test_a_symlink_in_place_of_the_directory_is_not_followed(tmp_path, stub, store):
    """Else somebody who can replace the directory chooses where the stubs go."""
    (tmp_path / "elsewhere").symlink_to(stub)
    with pytest.raises(StepError, match="Not a directory"):
        fill(tmp_path / "elsewhere", store, "directory")


@pytest.mark.parametrize(
    ("name", "fault", "step"),
    [
        ("directory", Fault("newfstatat", errno.EIO, argument=(3, 0x100)), "fstatat store entry"),
        ("directory", Fault("mkdirat", errno.ENOSPC), "mkdirat"),
        (
            "directory",
            Fault("openat", errno.EMFILE, argument=(2, DIRECTORY_FLAGS), below_descriptor=True),
            "openat",
        ),
        ("directory", Fault("fsetxattr", errno.EDQUOT), "fsetxattr redirect"),
        ("directory", Fault("fchown", errno.EPERM), "fchown"),
        ("directory", Fault("fchmod", errno.EPERM), "fchmod"),
        ("directory", Fault("utimensat", errno.EPERM), "futimens"),
        ("link", Fault("readlinkat", errno.EIO), "readlinkat"),
        ("link", Fault("symlinkat", errno.ENOSPC), "symlinkat"),
        ("link", Fault("fchownat", errno.EPERM), "fchownat"),
        ("link", Fault("utimensat", errno.EPERM), "utimensat"),
        ("file", Fault("linkat", errno.ENOSPC), "linkat"),
    ],
)
def test_each_step_that_fails_is_named(stub, store, name, fault, step):
    """No fall-back for errors that have none."""
    with pytest.raises(StepError) as caught:
        with_faults(lambda: fill(stub, store, name), fault)
    assert (caught.value.errno, caught.value.step, caught.value.filename) == (fault.errno, step, name)


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (Fault("openat", errno.EACCES, argument=(2, SOURCE_FLAGS)), "openat store entry"),
        (Fault("openat", errno.EACCES, argument=(2, COPY_FLAGS)), "openat"),
        (Fault("ioctl", errno.EIO, argument=(1, FICLONE)), "ioctl FICLONE"),
        (Fault("sendfile", errno.ENOSPC), "sendfile"),
        (Fault("fchown", errno.EPERM), "fchown"),
    ],
)
def test_each_step_of_a_copy_that_fails_is_named(stub, store, fault, step):
    """The disk may be full, or the file not for us to read."""
    faults = [NO_LINK, fault] if fault.call == "ioctl" else [NO_LINK, NO_CLONE, fault]
    with pytest.raises(StepError) as caught:
        with_faults(lambda: fill(stub, store, "file"), *faults)
    assert (caught.value.errno, caught.value.step) == (fault.errno, step)


def test_a_copy_that_ends_early_is_an_error(stub, store):
    """A store file shorter than it said is damaged; its stub must not pass for whole."""
    ends = Fault("sendfile", 0)  # answers 0 bytes
    with pytest.raises(StepError, match="sendfile: Input/output error: 'file'"):
        with_faults(lambda: fill(stub, store, "file"), NO_LINK, NO_CLONE, ends)


def test_a_clone_keeps_mode_and_time(stub, store):
    """As a copy does. The reflink itself is left out here; tests/system makes a real one."""
    pretended = Fault("ioctl", 0, argument=(1, FICLONE))
    counts = with_faults(lambda: fill(stub, store, "file"), NO_LINK, pretended)
    assert counts.cloned == 1
    assert stat.S_IMODE((stub / "file").stat().st_mode) == 0o444
    assert (stub / "file").stat().st_mtime_ns == 1_000_000_001


def test_ficlone_is_the_number_that_the_faults_here_use():
    """Python 3.14 knows it too; older ones do not."""
    assert getattr(fcntl, "FICLONE", FICLONE) == FICLONE
