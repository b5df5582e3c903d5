"""Trees of files: opened without a symlink followed, removed, measured, given to other owners."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from nixsnap.mounts._calls import check, encode, ffi, lib, new_failure
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.values import DiskUsage, IdMapping, OwnedFd


def open_directory(path: Path) -> OwnedFd:
    """Return an open directory; a symlink is not followed.

    Raises:
        StepError: ENOTDIR: it is something else, a symlink perhaps.
    """
    try:
        return OwnedFd(os.open(encode(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
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
    encoded = encode(relative)
    with ExitStack() as stack:
        top = root if isinstance(root, OwnedFd) else stack.enter_context(open_directory(root))
        failure = new_failure()
        result = lib.nsnap_open_beneath(top.fileno(), encoded, flags, mode, failure)
        name = str(relative) if isinstance(root, OwnedFd) else str(root / relative)
        return OwnedFd(check(result, failure, name))


def directory_has_types(directory: Path) -> bool:
    """Return whether the entries of a directory, which must have some, come with their type (d_type).

    Raises:
        StepError: ENOENT: it has no entries, or is not there.
    """
    with open_directory(directory) as opened:
        failure = new_failure()
        result = lib.nsnap_directory_has_types(opened.fileno(), failure)
        return check(result, failure, str(directory)) == 1


def remove_tree(path: Path) -> None:
    """Remove a file, or a directory with all below it; if it is not there, that is fine.

    No symlink is followed and no mount is entered.

    Raises:
        StepError: EBUSY: something in it is a mount point; what was removed before that is gone.
    """
    failure = new_failure()
    try:
        parent = open_directory(path.parent)
    except StepError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    with parent:
        check(lib.nsnap_remove_tree(parent.fileno(), encode(path.name), failure), failure, str(path))


def disk_usage(path: Path) -> DiskUsage:
    """Return the space that a file or a tree takes up; what vanishes while it is counted does not count.

    Raises:
        StepError: ENOENT: there is nothing at the path; EACCES: no right to read a directory in it.
    """
    usage = ffi.new("struct nsnap_usage *")
    failure = new_failure()
    check(lib.nsnap_disk_usage(encode(path), usage, failure), failure, str(path))
    return DiskUsage(inodes=usage.inodes, size_bytes=usage.size_bytes)


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
    failure = new_failure()
    with open_directory(directory) as top:
        result = lib.nsnap_shift_owners(
            top.fileno(), shallow_fd, uids, len(mapping.uids), gids, len(mapping.gids), failure
        )
    check(result, failure, str(directory))
