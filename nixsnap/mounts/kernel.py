"""The C core, as Python functions. The only module that imports the compiled one.

A function here takes and returns ints, paths and the values of `values`; it makes one call and checks it. What fails
raises `StepError`; a path or option that no kernel call could carry raises `InvalidArgumentError`. All functions
may be called from any thread, and release the GIL while they wait for the kernel.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.mounts._core import ffi as _ffi
from nixsnap.mounts._core import lib as _lib
from nixsnap.mounts._library import ForeignInterface, Library
from nixsnap.mounts.values import (
    DiskUsage,
    IdMapping,
    IdRange,
    MountProbe,
    OwnedFd,
    Propagation,
    StubCounts,
)

ffi = cast("ForeignInterface", _ffi)
lib = cast("Library", _lib)

OVERLAYFS_MAGIC = lib.NSNAP_OVERLAYFS_MAGIC
AT_FDCWD = -100  # linux/fcntl.h; the os module does not have it

_PROPAGATIONS = {
    None: lib.NSNAP_PROPAGATION_KEEP,
    Propagation.PRIVATE: lib.NSNAP_PROPAGATION_PRIVATE,
    Propagation.SLAVE: lib.NSNAP_PROPAGATION_SLAVE,
    Propagation.SHARED: lib.NSNAP_PROPAGATION_SHARED,
    Propagation.UNBINDABLE: lib.NSNAP_PROPAGATION_UNBINDABLE,
}


class StepError(OSError):
    """A system call failed.

    An ordinary `OSError`, with errno, strerror and filename, that also knows the step of a longer sequence.

    Attributes:
        step: The call and what it was to do, such as "fsconfig lowerdir+".
        detail: What the kernel, or the C core, had to add; may be empty.
    """

    def __init__(self, number: int, step: str, filename: str | None = None, detail: str = "") -> None:
        super().__init__(number, os.strerror(number), filename)
        self.step = step
        self.detail = detail

    def __str__(self) -> str:
        text = f"{self.step}: {self.strerror}"
        if self.filename is not None:
            text += f": {self.filename!r}"
        return f"{text} ({self.detail})" if self.detail else text


def check(result: int, failure: Any, filename: str | None = None, *, row: Sequence[str] = ()) -> int:
    """Return the result of a C function, or raise what its failure says.

    Args:
        result: What the function returned.
        failure: The struct nsnap_failure that it was given.
        filename: The path that the call was about.
        row: The paths or names that failure->index counts; one of them is then the file name.

    Raises:
        StepError: The result is a negative errno.
    """
    if result >= 0:
        return result
    detail = ffi.string(failure.message).decode("utf-8", "replace")
    if 0 <= failure.index < len(row):
        filename = row[failure.index]
    elif subject := os.fsdecode(ffi.string(failure.subject)):
        detail = f"{subject!r}: {detail}" if detail else repr(subject)
    raise StepError(-result, ffi.string(failure.step).decode(), filename, detail)


def _encode(text: str | Path) -> bytes:
    """Return a path or option as C takes it. cffi would cut it at the first NUL without a word."""
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise InvalidArgumentError(f"a NUL byte in {str(text)!r}")
    return encoded


def _failure() -> Any:
    return ffi.new("struct nsnap_failure *")


def _place(place: Path | OwnedFd) -> tuple[int, bytes, str]:
    """Return a place as a directory's descriptor and a path from there, and what to call it."""
    if isinstance(place, OwnedFd):
        return place.fileno(), b"", f"/proc/self/fd/{place.fileno()}"
    return AT_FDCWD, _encode(place), str(place)


def _strings(texts: Sequence[bytes]) -> tuple[Any, list[Any]]:
    """Return texts as a C array, and what must stay alive as long as that."""
    items = [ffi.new("char[]", text) for text in texts]
    return ffi.new("char *[]", items), items


def _locate(path: Path, trees: Mapping[Path, OwnedFd]) -> tuple[int, Path]:
    """Return the tree that a path is to be looked up in, -1 for none, and the path from there."""
    for top in (path, *path.parents):
        if top in trees:
            return trees[top].fileno(), path.relative_to(top)
    return -1, path


class _Overlay:
    """A struct nsnap_overlay, the strings that it points to, and the paths that its failures count."""

    def __init__(
        self,
        *,
        lowerdirs: Sequence[Path],
        datadirs: Sequence[Path],
        upperdir: Path | None,
        workdir: Path | None,
        options: Sequence[str],
        readonly: bool,
        trees: Mapping[Path, OwnedFd] = MappingProxyType({}),
    ) -> None:
        for option in options:
            if "," in option:
                raise InvalidArgumentError(f"a comma in the overlay option {option!r}")
        self.paths = [str(path) for path in (*lowerdirs, *datadirs, upperdir, workdir) if path is not None]
        places = [_locate(path, trees) for path in (*lowerdirs, *datadirs)]
        lowers, keep_lowers = _strings([_encode(path) for _, path in places[: len(lowerdirs)]])
        datas, keep_datas = _strings([_encode(path) for _, path in places[len(lowerdirs) :]])
        tree_fds = ffi.new("int[]", [fd for fd, _ in places]) if trees else ffi.NULL
        choices, keep_choices = _strings([_encode(option) for option in options])
        upper = ffi.NULL if upperdir is None else ffi.new("char[]", _encode(upperdir))
        work = ffi.NULL if workdir is None else ffi.new("char[]", _encode(workdir))
        self._keep = [lowers, keep_lowers, datas, keep_datas, tree_fds, choices, keep_choices, upper, work]
        self.struct = ffi.new(
            "struct nsnap_overlay *",
            {
                "lowerdirs": lowers,
                "lowerdir_count": len(lowerdirs),
                "datadirs": datas,
                "datadir_count": len(datadirs),
                "tree_fds": tree_fds,
                "upperdir": upper,
                "workdir": work,
                "options": choices,
                "option_count": len(options),
                "readonly": readonly,
            },
        )


@functools.cache
def appends_lowerdirs() -> bool:
    """Return whether overlayfs takes its lower layers one by one here ("lowerdir+", Linux 6.7).

    Where it does not, overlays are mounted by mount(2), which reads one page of options. The kernel is asked once.

    Raises:
        StepError: ENODEV: there is no overlayfs; EPERM: no right to mount.
    """
    failure = _failure()
    return check(lib.nsnap_overlay_appends(failure), failure) == 1


def _create_overlay(overlay: _Overlay) -> OwnedFd:
    failure = _failure()
    return OwnedFd(check(lib.nsnap_overlay_create(overlay.struct, failure), failure, row=overlay.paths))


def _mount_overlay_page(overlay: _Overlay, target: Path | OwnedFd) -> None:
    dir_fd, path, name = _place(target)
    failure = _failure()
    result = lib.nsnap_overlay_mount_page(overlay.struct, dir_fd, path, failure)
    check(result, failure, name, row=overlay.paths)


def create_overlay(
    *,
    lowerdirs: Sequence[Path],
    datadirs: Sequence[Path] = (),
    upperdir: Path | None = None,
    workdir: Path | None = None,
    options: Sequence[str] = (),
    readonly: bool = False,
    trees: Mapping[Path, OwnedFd] = MappingProxyType({}),
) -> OwnedFd:
    """Return a detached overlay mount; only where `appends_lowerdirs`.

    Args:
        lowerdirs: The lower layers, topmost first.
        datadirs: Data-only layers, which lie below all of them and only serve redirected file contents.
        upperdir: Where writes go. Without one the mount is read-only.
        workdir: An empty directory on the file system of `upperdir`, there if and only if that is.
        options: Other options of overlayfs, "name=value" or "name".
        readonly: Whether the mount is read-only even so.
        trees: Detached mounts that stand in for what is mounted at their paths: layers at or below one of these are
            looked up in it.

    Raises:
        StepError: The kernel refused; filename is the layer that it refused, where it was one. EINVAL, with `trees`:
            it may be too old for layers that are detached (Linux 6.15).
        InvalidArgumentError: An option has a comma, or something has a NUL.
    """
    return _create_overlay(
        _Overlay(
            lowerdirs=lowerdirs,
            datadirs=datadirs,
            upperdir=upperdir,
            workdir=workdir,
            options=options,
            readonly=readonly,
            trees=trees,
        )
    )


def mount_overlay(
    target: Path | OwnedFd,
    *,
    lowerdirs: Sequence[Path],
    datadirs: Sequence[Path] = (),
    upperdir: Path | None = None,
    workdir: Path | None = None,
    options: Sequence[str] = (),
    readonly: bool = False,
) -> None:
    """Mount an overlay on a directory, which is not followed if it is a symlink.

    Args: as `create_overlay`.

    Raises:
        StepError: As `create_overlay`; E2BIG: the kernel is too old for more layers than fit into a page of options.
        InvalidArgumentError: As `create_overlay`.
    """
    overlay = _Overlay(
        lowerdirs=lowerdirs,
        datadirs=datadirs,
        upperdir=upperdir,
        workdir=workdir,
        options=options,
        readonly=readonly,
    )
    if not appends_lowerdirs():
        _mount_overlay_page(overlay, target)
        return
    with _create_overlay(overlay) as tree:
        attach(tree, target)


def clone_tree(path: Path | OwnedFd, *, recursive: bool) -> OwnedFd:
    """Return a detached clone of what is mounted at a path, all of it or from a directory or file in it down.

    Args:
        path: What to clone; a symlink is not followed.
        recursive: Whether mounts below it are cloned too.

    Raises:
        StepError: ELOOP: the path is a symlink.
    """
    dir_fd, encoded, name = _place(path)
    failure = _failure()
    return OwnedFd(check(lib.nsnap_clone_tree(dir_fd, encoded, recursive, failure), failure, name))


def set_attributes(
    tree: OwnedFd,
    *,
    readonly: bool | None = None,
    nosuid: bool | None = None,
    nodev: bool | None = None,
    noexec: bool | None = None,
    noatime: bool | None = None,
    nosymfollow: bool | None = None,
    propagation: Propagation | None = None,
    userns: OwnedFd | None = None,
    recursive: bool = False,
) -> None:
    """Set (True), clear (False) or leave (None) attributes of a mount; all of it happens, or nothing.

    Args:
        tree: The mount, detached or not.
        readonly: No writes through this mount.
        nosuid: No set-user-id programs, no file capabilities.
        nodev: No device files.
        noexec: No programs.
        noatime: No access times.
        nosymfollow: No symlinks followed.
        propagation: What happens to mounts below it.
        userns: The user namespace whose id maps the owners of files go through. Only for a detached mount, and once.
        recursive: Whether the mounts below it change too.

    Raises:
        StepError: EINVAL: with `userns`, the file system cannot be idmapped; EPERM: or it is idmapped already.
    """
    choices = {
        lib.NSNAP_READONLY: readonly,
        lib.NSNAP_NOSUID: nosuid,
        lib.NSNAP_NODEV: nodev,
        lib.NSNAP_NOEXEC: noexec,
        lib.NSNAP_NOATIME: noatime,
        lib.NSNAP_NOSYMFOLLOW: nosymfollow,
    }
    attributes = ffi.new(
        "struct nsnap_attributes *",
        {
            "set": sum(flag for flag, choice in choices.items() if choice is True),
            "clear": sum(flag for flag, choice in choices.items() if choice is False),
            "propagation": _PROPAGATIONS[propagation],
            "userns_fd": -1 if userns is None else userns.fileno(),
        },
    )
    failure = _failure()
    check(lib.nsnap_set_attributes(tree.fileno(), attributes, recursive, failure), failure)


def lock_tree(tree: OwnedFd) -> OwnedFd:
    """Return a detached clone of a detached directory, with the attributes that it has locked for good.

    Whoever gets a mount into a mount namespace of his own could clear its read-only and nosuid; of this one he cannot,
    nor of its clones. The tree that is given is used up: it can be closed, and no more.

    Raises:
        StepError: EPERM: no right to mount; EINVAL: the tree is not a detached mount.
    """
    failure = _failure()
    return OwnedFd(check(lib.nsnap_lock_tree(tree.fileno(), failure), failure))


def attach(tree: OwnedFd, target: Path | OwnedFd) -> None:
    """Mount a detached mount on a target, which is not followed if it is a symlink.

    Raises:
        StepError: ELOOP: the target is a symlink; ENOTDIR or EINVAL: one is a directory and the other is not.
    """
    dir_fd, path, name = _place(target)
    failure = _failure()
    check(lib.nsnap_attach(tree.fileno(), dir_fd, path, failure), failure, name)


def bind_mount(source: Path | OwnedFd, target: Path | OwnedFd, *, recursive: bool, readonly: bool) -> None:
    """Show the source at the target as well; neither is followed if it is a symlink.

    Args:
        source: A directory or file.
        target: The same kind of thing.
        recursive: Whether mounts below the source are shown too; `readonly` then covers them.
        readonly: Whether the target is read-only. False leaves it as the source's mount is.

    Raises:
        StepError: As `clone_tree`, `set_attributes` and `attach`. The target is then as it was.
    """
    with clone_tree(source, recursive=recursive) as tree:
        if readonly:
            set_attributes(tree, readonly=True, recursive=recursive)
        attach(tree, target)


def forget_names(path: Path) -> None:
    """Have the file system mounted at a path look names up anew.

    An overlay keeps what it looked up, whatever happens in its layers below; after this it shows what they hold now.
    Names in use, those of open files and working directories, stay as they are.

    Raises:
        StepError: EINVAL: nothing is mounted there; ENOSYS: this kernel is older than 5.2.
    """
    failure = _failure()
    check(lib.nsnap_forget_names(_encode(path), failure), failure, str(path))


def unmount(path: Path) -> None:
    """Take the topmost mount off a path, which is not followed if it is a symlink.

    Raises:
        StepError: EBUSY: it is in use; EINVAL: nothing is mounted there.
    """
    _unmount(path, detach=False)


def detach(path: Path) -> None:
    """Take the topmost mount off a path, with those below it, even in use: it ends when its last user does.

    Raises:
        StepError: EINVAL: nothing is mounted there.
    """
    _unmount(path, detach=True)


def _unmount(path: Path, *, detach: bool) -> None:
    failure = _failure()
    check(lib.nsnap_unmount(_encode(path), detach, failure), failure, str(path))


def create_user_namespace(uid_map: Sequence[IdRange], gid_map: Sequence[IdRange]) -> OwnedFd:
    """Return a user namespace that has these maps and no process in it.

    Raises:
        StepError: EPERM: no right to map those ids; EINVAL: ranges overlap, or are too many (340).
    """
    failure = _failure()
    result = lib.nsnap_userns_create(_format_map(uid_map), _format_map(gid_map), failure)
    return OwnedFd(check(result, failure))


def _format_map(ranges: Sequence[IdRange]) -> bytes:
    """Return ranges as /proc/PID/uid_map takes them."""
    return "".join(f"{run.container_id} {run.host_id} {run.length}\n" for run in ranges).encode()


def probe_mount(path: Path) -> MountProbe:
    """Return what a path lies on; a symlink is not followed.

    Raises:
        StepError: ENOENT: there is nothing at the path.
    """
    probe = ffi.new("struct nsnap_mount_probe *")
    failure = _failure()
    check(lib.nsnap_probe_mount(_encode(path), probe, failure), failure, str(path))
    return MountProbe(mount_id=probe.mount_id, is_root=probe.is_root, filesystem_magic=probe.filesystem_magic)


def directory_has_types(directory: Path) -> bool:
    """Return whether the entries of a directory, which must have some, come with their type (d_type).

    Raises:
        StepError: ENOENT: it has no entries, or is not there.
    """
    with open_directory(directory) as opened:
        failure = _failure()
        result = lib.nsnap_directory_has_types(opened.fileno(), failure)
        return check(result, failure, str(directory)) == 1


def open_directory(path: Path) -> OwnedFd:
    """Return an open directory; a symlink is not followed.

    Raises:
        StepError: ENOTDIR: it is something else, a symlink perhaps.
    """
    try:
        return OwnedFd(os.open(_encode(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        raise StepError(error.errno or errno.EIO, "open directory", str(path)) from error


def open_beneath(
    root: Path | OwnedFd, relative: str | Path, flags: int = os.O_PATH, *, mode: int = 0
) -> OwnedFd:
    """Open a path below a directory so that no symlink is followed anywhere on the way, and nothing leads out.

    Args:
        root: The directory.
        relative: The path from there.
        flags: As for open(2); close-on-exec comes by itself.
        mode: The permissions of a file that `flags` create; else 0.

    Raises:
        StepError: ELOOP: a symlink is on the way; EXDEV: the path leads out.
    """
    encoded = _encode(relative)
    with ExitStack() as stack:
        top = root if isinstance(root, OwnedFd) else stack.enter_context(open_directory(root))
        failure = _failure()
        result = lib.nsnap_open_beneath(top.fileno(), encoded, flags, mode, failure)
        name = str(relative) if isinstance(root, OwnedFd) else str(root / relative)
        return OwnedFd(check(result, failure, name))


def fill_stub(
    directory: Path,
    *,
    store: Path,
    names: Sequence[str],
    redirect_xattr: str | None,
    redirect_prefix: str = "/",
    keep_ids: bool = True,
) -> StubCounts:
    """Fill a directory with stand-ins for entries of a store.

    A directory is stood in for by an empty directory, with an overlay redirect to it if one is wanted; a symlink by
    the same symlink, which is never followed; a regular file by a hard link, else a reflink, else a copy. Mode and
    modification time are those of the entry.

    Args:
        directory: Where to put them.
        store: The directory that holds the entries.
        names: The entries, plain file names.
        redirect_xattr: The extended attribute for redirects ("trusted.overlay.redirect"), or None.
        redirect_prefix: What comes before the name in it: the path of the store, from the root of its own layer.
        keep_ids: Whether owner, group and set-id bits are those of the entry too. Where the store's owner is nobody, as
            in a user namespace, they are better our own, and without such bits.

    Raises:
        StepError: EEXIST, or ENOENT in the store; EINVAL: not a plain name, or a device, pipe or socket. Those made
            before it stay, for the caller to remove.
    """
    encoded = b"".join(_encode(name) + b"\0" for name in names)
    counts = ffi.new("struct nsnap_stub_counts *")
    failure = _failure()
    with open_directory(directory) as to, open_directory(store) as source:
        result = lib.nsnap_stub_fill(
            to.fileno(),
            source.fileno(),
            encoded,
            len(encoded),
            keep_ids,
            ffi.NULL if redirect_xattr is None else _encode(redirect_xattr),
            _encode(redirect_prefix),
            counts,
            failure,
        )
    check(result, failure, str(directory), row=names)
    return _stub_counts(counts)


def fill_stub_trees(
    directory: Path,
    *,
    store: Path,
    names: Sequence[str],
    xattr_prefix: str,
    donors: Sequence[Path] = (),
    keep_ids: bool = True,
) -> StubCounts:
    """Fill a directory with stand-ins for entries of a store and all below them, for an overlay with a data-only layer.

    Directories and symlinks are made as they are. A regular file is stood in for by an empty one of its length, mode
    and modification time, whose attributes lead to it: a hard link to what one of `donors` has for it, else a new one.

    Args:
        directory: Where to put them.
        store: The directory that holds the entries, which is the data-only layer.
        names: The entries, plain file names.
        xattr_prefix: What overlayfs keeps its marks under, "user.overlay." or "trusted.overlay.".
        donors: Directories filled in this way before; what is wrong in them, or missing, is made anew.
        keep_ids: As `fill_stub`.

    Raises:
        StepError: As `fill_stub`; the detail says where below the entry it was.
    """
    encoded = b"".join(_encode(name) + b"\0" for name in names)
    metacopy, redirect = (_encode(xattr_prefix + name) for name in ("metacopy", "redirect"))
    counts = ffi.new("struct nsnap_stub_counts *")
    failure = _failure()
    with ExitStack() as stack:
        donor_fds = [fd.fileno() for fd in _open_present(donors, stack)]
        keep = [ffi.new("char[]", text) for text in (encoded, metacopy, redirect)]
        fds = ffi.new("int[]", donor_fds)
        trees = ffi.new(
            "struct nsnap_stub_trees *",
            {
                "dir_fd": stack.enter_context(open_directory(directory)).fileno(),
                "store_fd": stack.enter_context(open_directory(store)).fileno(),
                "names": keep[0],
                "names_size": len(encoded),
                "metacopy_xattr": keep[1],
                "redirect_xattr": keep[2],
                "donor_fds": fds,
                "donor_count": len(donor_fds),
                "keep_ids": keep_ids,
            },
        )
        result = lib.nsnap_stub_fill_trees(trees, counts, failure)
    check(result, failure, str(directory), row=names)
    return _stub_counts(counts)


def _open_present(directories: Sequence[Path], stack: ExitStack) -> list[OwnedFd]:
    """Open those that are there; they may be removed at any time."""
    opened = []
    for directory in directories:
        try:
            opened.append(stack.enter_context(open_directory(directory)))
        except StepError as error:
            if error.errno != errno.ENOENT:
                raise
    return opened


def _stub_counts(counts: Any) -> StubCounts:
    return StubCounts(**{field.name: getattr(counts, field.name) for field in attrs.fields(StubCounts)})


def shift_owners(directory: Path, mapping: IdMapping, *, shallow: OwnedFd | None = None) -> None:
    """Give everything below a directory, but not itself, to the ids outside that its owners are inside.

    Owners that are not in the map stay. Set-user-id bits stay; file capabilities go, as with every chown(2).

    Args:
        directory: A directory that nobody else writes to.
        mapping: The ids.
        shallow: A directory in it of which only the entries are given away, not what is in them.

    Raises:
        StepError: EXDEV: a mount is in the way; or the file system refuses. A part of the files has changed then.
    """
    uids, gids = (
        ffi.new("struct nsnap_id_range[]", [(run.container_id, run.host_id, run.length) for run in ranges])
        for ranges in (mapping.uids, mapping.gids)
    )
    shallow_fd = -1 if shallow is None else shallow.fileno()
    failure = _failure()
    with open_directory(directory) as top:
        result = lib.nsnap_shift_owners(
            top.fileno(), shallow_fd, uids, len(mapping.uids), gids, len(mapping.gids), failure
        )
    check(result, failure, str(directory))


def remove_tree(path: Path) -> None:
    """Remove a file, or a directory with all below it; if it is not there, that is fine.

    No symlink is followed and no mount is entered.

    Raises:
        StepError: EBUSY: something in it is a mount point; what was removed before that is gone.
    """
    failure = _failure()
    try:
        parent = open_directory(path.parent)
    except StepError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    with parent:
        check(lib.nsnap_remove_tree(parent.fileno(), _encode(path.name), failure), failure, str(path))


def disk_usage(path: Path) -> DiskUsage:
    """Return the space that a file or a tree takes up; what vanishes while it is counted does not count.

    Raises:
        StepError: ENOENT: there is nothing at the path; EACCES: no right to read a directory in it.
    """
    usage = ffi.new("struct nsnap_usage *")
    failure = _failure()
    check(lib.nsnap_disk_usage(_encode(path), usage, failure), failure, str(path))
    return DiskUsage(inodes=usage.inodes, size_bytes=usage.size_bytes)
