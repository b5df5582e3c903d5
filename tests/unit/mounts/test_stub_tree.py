"""fill_stub_trees, as any user: what overlayfs makes of it is for tests/system."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from faults import Fault, with_faults
from trees import make_deep, names

from nixsnap.mounts import filetrees, stubfill
from nixsnap.mounts.errors import StepError

METACOPY, REDIRECT = "user.overlay.metacopy", "user.overlay.redirect"
TIME = 1_000_000_001
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PARENT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@pytest.fixture
def store(tmp_path):
    """A store with one entry of each kind, and within one of them one of each kind again."""
    store = tmp_path / "store"
    (store / "package/bin").mkdir(parents=True)
    (store / "package/bin/program").write_bytes(b"program" * 1000)
    (store / "package/bin/program").chmod(0o555)
    (store / "package/empty").touch()
    (store / "package/link").symlink_to("/etc/passwd")
    (store / "package/deep/er").mkdir(parents=True)
    (store / "package/deep/er/file").write_text("text")
    os.mkfifo(store / "package/fifo")
    (store / "file").write_text("single")
    (store / "file").chmod(0o444)
    (store / "link").symlink_to("/")
    os.mkfifo(store / "fifo")
    for path in (*store.rglob("*"), store):
        os.utime(path, ns=(10**18, TIME), follow_symlinks=False)
    for path in ("package/bin", "package"):
        (store / path).chmod(0o555)
        os.utime(store / path, ns=(10**18, TIME))
    yield store
    for path in ("package", "package/bin"):
        (store / path).chmod(0o755)


@pytest.fixture
def stubs(tmp_path):
    """Makes empty directories to fill; a plain user has to be let in again to remove what is in them."""
    made = []

    def make(name: str = "stub") -> Path:
        made.append(tmp_path / name)
        made[-1].mkdir()
        return made[-1]

    yield make
    for directory in made:
        filetrees.remove_tree(directory)


@pytest.fixture
def stub(stubs):
    return stubs()


def fill(stub: Path, store: Path, *entries: str, donors=(), keep_ids: bool = False):
    return stubfill.fill_stub_trees(
        stub, store=store, names=entries, xattr_prefix="user.overlay.", donors=donors, keep_ids=keep_ids
    )


def test_a_tree_is_repeated_without_its_data(stub, store):
    """Directories and symlinks as they are; files of the same length, mode and time that say where their data is."""
    counts = fill(stub, store, "package")
    package = stub / "package"
    assert sorted(str(path.relative_to(package)) for path in package.rglob("*")) == [
        "bin", "bin/program", "deep", "deep/er", "deep/er/file", "empty", "link",
    ]  # fmt: skip
    assert (counts.directories, counts.symlinks, counts.data_only, counts.left_out) == (4, 1, 3, 1)
    assert counts.files == 3
    program = package / "bin/program"
    status = program.stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (7000, 0o555, TIME)
    assert program.read_bytes() == bytes(7000)
    assert os.getxattr(program, METACOPY) == b""
    assert os.getxattr(program, REDIRECT) == b"/package/bin/program"
    assert os.getxattr(package / "deep/er/file", REDIRECT) == b"/package/deep/er/file"
    for path in (package, package / "bin", package / "deep", package / "link"):
        assert path.lstat().st_mtime_ns == TIME, path
    assert stat.S_IMODE((package / "bin").stat().st_mode) == 0o555
    assert (package / "link").readlink() == Path("/etc/passwd")


def test_a_file_and_a_symlink_as_entries(stub, store):
    """Store paths need not be directories."""
    counts = fill(stub, store, "file", "link")
    assert (counts.data_only, counts.symlinks) == (1, 1)
    assert os.getxattr(stub / "file", REDIRECT) == b"/file"
    assert (stub / "link").readlink() == Path("/")


def test_an_empty_file_leads_nowhere(stub, store):
    """It has no data to be fetched."""
    fill(stub, store, "package")
    assert os.listxattr(stub / "package/empty") == []


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_the_process_umask_does_not_matter(stub, store, mask):
    """Modes are the store's."""
    before = os.umask(mask)
    try:
        fill(stub, store, "package")
    finally:
        os.umask(before)
    assert stat.S_IMODE((stub / "package/bin/program").stat().st_mode) == 0o555
    assert stat.S_IMODE((stub / "package/deep").stat().st_mode) == stat.S_IMODE(
        (store / "package/deep").stat().st_mode
    )


@pytest.mark.parametrize("keep_ids", [False, True])
def test_set_id_bits_go_with_the_owner(stub, store, keep_ids):
    """A program that is set-user-id to nobody must not become one that is so to us."""
    (store / "file").chmod(0o6555)
    fill(stub, store, "file", keep_ids=keep_ids)
    assert stat.S_IMODE((stub / "file").stat().st_mode) == (0o6555 if keep_ids else 0o555)


def test_what_a_donor_has_is_linked(stubs, store):
    """Files are shared, directories cannot be; what it lacks is made."""
    first, second = stubs("first"), stubs("second")
    fill(first, store, "package")
    counts = fill(second, store, "package", "file", donors=[first])
    assert (counts.shared, counts.data_only, counts.directories) == (3, 1, 4)
    for path in ("package/bin/program", "package/empty", "package/deep/er/file"):
        assert (first / path).samefile(second / path)
    assert (second / "package").stat().st_mtime_ns == TIME


def test_the_first_donor_that_has_an_entry(stubs, store):
    """Of several, of which one has gone."""
    one, two, three = stubs("one"), stubs("two"), stubs("three")
    fill(one, store, "file")
    fill(two, store, "file", "package")
    counts = fill(three, store, "file", "package", donors=[one.parent / "absent", one, two])
    assert (counts.shared, counts.data_only) == (4, 0)
    assert (three / "file").samefile(one / "file")
    assert (three / "package/empty").samefile(two / "package/empty")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: (
            file.chmod(0o755),
            os.truncate(file, 1),
            file.chmod(0o555),
            os.utime(file, ns=(TIME, TIME)),
        ),
        lambda file: file.chmod(0o700),
        lambda file: os.utime(file, (5, 5)),
        lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: filetrees.remove_tree(file.parent),
        lambda file: (
            filetrees.remove_tree(file.parent),
            file.parent.symlink_to(file.parents[2] / "elsewhere"),
        ),
    ],
    ids=["gone", "length", "mode", "time", "symlink", "directory", "parent gone", "parent a symlink"],
)
def test_what_is_wrong_in_a_donor_is_made_anew(stubs, store, spoil):
    """A donor may be on its way out, and a store path may have been built again; symlinks in it are not followed."""
    first, second = stubs("first"), stubs("second")
    fill(first, store, "package")
    (first / "elsewhere").mkdir()
    fill(first / "elsewhere", store, "file")
    (first / "elsewhere/file").rename(first / "elsewhere/program")
    (first / "package").chmod(0o755)
    (first / "package/bin").chmod(0o755)
    spoil(first / "package/bin/program")
    counts = fill(second, store, "package", donors=[first])
    assert (counts.data_only, counts.shared) == (1, 2)
    assert os.getxattr(second / "package/bin/program", REDIRECT) == b"/package/bin/program"
    assert (second / "package/bin/program").stat().st_size == 7000


@pytest.mark.parametrize("error", [errno.EMLINK, errno.EPERM, errno.ENOENT])
def test_a_stub_that_cannot_be_linked_is_made_anew(stubs, store, error):
    """ext4 gives an inode 65,000 links, and a popular store path may be in more images."""
    first, second = stubs("first"), stubs("second")
    fill(first, store, "file")
    counts = with_faults(lambda: fill(second, store, "file", donors=[first]), Fault("linkat", error))
    assert (counts.data_only, counts.shared) == (1, 0)


def test_other_owners_are_not_shared_where_ids_are_kept(stubs, store):
    """With a rootful daemon; a store path's owner may have been changed."""
    first, second = stubs("first"), stubs("second")
    fill(first, store, "file")
    if os.geteuid() == 0:
        os.chown(first / "file", 1, 1)
        os.utime(first / "file", ns=(TIME, TIME))
        assert fill(second, store, "file", donors=[first], keep_ids=True).data_only == 1
    else:
        assert fill(second, store, "file", donors=[first], keep_ids=True).shared == 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.E2BIG, errno.ERANGE])
def test_a_file_whose_redirect_does_not_fit_is_copied(stub, store, error):
    """File systems limit attributes; ext4 has one block for all."""
    faults = Fault("fsetxattr", error, argument=(3, len("/package/bin/program")))
    counts = with_faults(lambda: fill(stub, store, "package"), faults)
    assert (counts.copied, counts.data_only) == (1, 2)
    assert (stub / "package/bin/program").read_bytes() == b"program" * 1000
    assert os.listxattr(stub / "package/bin/program") == []
    assert stat.S_IMODE((stub / "package/bin/program").stat().st_mode) == 0o555


def test_a_tree_deeper_than_any_path(in_memory):
    """No path is as long as that, so no redirect is; the file at its end is copied."""
    store, stub = in_memory / "store", in_memory / "stub"
    (store / "deep").mkdir(parents=True)
    stub.mkdir()
    make_deep(store / "deep", 3000)
    (store / "deep/shallow").write_text("text")
    counts = fill(stub, store, "deep")
    # The file down there is empty, and so is what stands for it.
    assert (counts.directories, counts.data_only) == (3001, 2)
    assert os.getxattr(stub / "deep/shallow", REDIRECT) == b"/deep/shallow"
    at = os.open(stub / "deep", os.O_RDONLY)
    for _ in range(3000):
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    try:
        assert [entry.name for entry in os.scandir(at)] == ["file"]
    finally:
        os.close(at)


def test_the_longest_paths(stub, tmp_path):
    """Up to what an attribute takes files lead to the store; from there on they are copies. Nothing is cut short."""
    store = tmp_path / "store"
    directory = store / "entry"
    directory.mkdir(parents=True)
    fd = os.open(directory, os.O_RDONLY)
    for level in range(20):
        name = f"{level:02}" + "x" * 198
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        for length in range(1, 101, 7):
            file = os.open("f" * length, os.O_WRONLY | os.O_CREAT, dir_fd=fd)
            os.write(file, b"text")
            os.close(file)
    os.close(fd)
    counts = fill(stub, store, "entry")
    assert counts.copied + counts.data_only == 20 * 15
    # 4096 bytes of a block, or of a path, are fewer than 21 levels of 201.
    assert 0 < counts.copied < 60
    filetrees.remove_tree(store)


def test_many_files_in_one_directory(stub, tmp_path):
    """More than one reading of it."""
    store = tmp_path / "store"
    (store / "entry").mkdir(parents=True)
    for number in range(3000):
        (store / f"entry/{number}").write_text("x")
    assert fill(stub, store, "entry").data_only == 3000
    assert names(stub / "entry") == names(store / "entry")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../store/file", "package/bin"])
def test_what_is_not_a_plain_name_is_refused(stub, store, name):
    """Nothing is looked at outside the store, nor made outside the stub."""
    with pytest.raises(StepError) as caught:
        fill(stub, store, "link", name)
    assert (caught.value.errno, caught.value.step, caught.value.filename) == (errno.EINVAL, "stub name", name)


def test_an_entry_that_the_store_lacks(stub, store):
    """The name is told."""
    with pytest.raises(StepError) as caught:
        fill(stub, store, "link", "absent")
    assert (caught.value.errno, caught.value.step, caught.value.filename) == (
        errno.ENOENT, "fstatat store entry", "absent",
    )  # fmt: skip


def test_a_special_file_as_an_entry_is_refused(stub, store):
    """The Nix store has no pipes, devices or sockets."""
    with pytest.raises(StepError, match="stub of a special file: Invalid argument: 'fifo'"):
        fill(stub, store, "fifo")


@pytest.mark.parametrize(
    ("name", "step"), [("package", "mkdirat"), ("link", "symlinkat"), ("file", "openat")]
)
def test_what_exists_is_an_error(stub, store, name, step):
    """Nothing is replaced."""
    (stub / name).touch()
    with pytest.raises(StepError) as caught:
        fill(stub, store, name)
    assert (caught.value.errno, caught.value.step) == (errno.EEXIST, step)


@pytest.mark.parametrize(
    ("fault", "step", "where"),
    [
        (Fault("openat2", errno.EMFILE), "openat2", ""),
        (Fault("mkdirat", errno.ENOSPC), "mkdirat", ""),
        (Fault("openat", errno.EMFILE, argument=(2, DIRECTORY_FLAGS), below_descriptor=True), "openat", ""),
        (Fault("openat", errno.EACCES, argument=(2, CREATE_FLAGS)), "openat", "/package"),
        (
            Fault("openat", errno.EMFILE, argument=(2, PARENT_FLAGS), below_descriptor=True),
            "openat parent",
            "/p",
        ),
        (Fault("getdents64", errno.EIO), "getdents64", "/package"),
        (Fault("fsetxattr", errno.EDQUOT, argument=(3, 0)), "fsetxattr metacopy", "/package"),
        (Fault("fsetxattr", errno.EDQUOT, argument=(3, 20)), "fsetxattr redirect", "/package/bin"),
        (Fault("ftruncate", errno.EFBIG), "ftruncate", "/package"),
        (Fault("symlinkat", errno.ENOSPC), "symlinkat", "/package"),
        (Fault("fchmod", errno.EPERM), "fchmod", "/package"),
        (Fault("utimensat", errno.EPERM), "", "/package"),
    ],
)
def test_each_step_that_fails_is_named(stub, store, fault, step, where):
    """With the store path that it belongs to, and the directory in it."""
    with pytest.raises(StepError) as caught:
        with_faults(lambda: fill(stub, store, "package"), fault)
    error = caught.value
    assert (error.errno, error.filename) == (fault.errno, "package")
    assert error.step == step or (not step and error.step in {"utimensat", "futimens"})
    assert error.detail.startswith(where)


def test_an_unlink_that_fails_before_a_copy(stub, store):
    """Else the copy would find the file that it is to be."""
    faults = Fault("fsetxattr", errno.ERANGE, argument=(3, 5)), Fault("unlinkat", errno.EIO)
    with pytest.raises(StepError, match="unlinkat: Input/output error: 'file'"):
        with_faults(lambda: fill(stub, store, "file"), *faults)


def test_directories_that_are_not_there(stub, store):
    """Both are named; a donor that is not there is no error."""
    with pytest.raises(StepError, match="open directory: No such file or directory: '/absent'"):
        fill(Path("/absent"), store)
    with pytest.raises(StepError, match="open directory: No such file or directory: '/absent'"):
        fill(stub, Path("/absent"))
    with pytest.raises(StepError, match="open directory: Not a directory"):
        fill(stub, store, donors=[store / "file"])
