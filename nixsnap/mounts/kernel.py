"""Mounts: cloned, changed, attached, taken down, looked at; and the user namespaces that map their ids.

How a call is made and fails is told in `_calls`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nixsnap.mounts._calls import check, encode, ffi, lib, new_failure, place
from nixsnap.mounts.values import IdRange, MountProbe, OwnedFd, Propagation

OVERLAYFS_MAGIC = lib.NSNAP_OVERLAYFS_MAGIC

_PROPAGATIONS = {
    None: lib.NSNAP_PROPAGATION_KEEP,
    Propagation.PRIVATE: lib.NSNAP_PROPAGATION_PRIVATE,
    Propagation.SLAVE: lib.NSNAP_PROPAGATION_SLAVE,
    Propagation.SHARED: lib.NSNAP_PROPAGATION_SHARED,
    Propagation.UNBINDABLE: lib.NSNAP_PROPAGATION_UNBINDABLE,
}


def clone_tree(path: Path | OwnedFd, *, recursive: bool) -> OwnedFd:
    """Return a detached clone of what is mounted at a path, all of it or from a directory or file in it down.

    Args:
        path: What to clone; a symlink is not followed.
        recursive: Whether mounts below it are cloned too.

    Raises:
        StepError: ELOOP: the path is a symlink.
    """
    dir_fd, encoded, name = place(path)
    failure = new_failure()
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
    failure = new_failure()
    check(lib.nsnap_set_attributes(tree.fileno(), attributes, recursive, failure), failure)


def lock_tree(tree: OwnedFd) -> OwnedFd:
    """Return a detached clone of a detached directory, with the attributes that it has locked for good.

    Whoever gets a mount into a mount namespace of his own could clear its read-only and nosuid; of this one he cannot,
    nor of its clones. The tree that is given is used up: it can be closed, and no more.

    Raises:
        StepError: EPERM: no right to mount; EINVAL: the tree is not a detached mount.
    """
    failure = new_failure()
    return OwnedFd(check(lib.nsnap_lock_tree(tree.fileno(), failure), failure))


def attach(tree: OwnedFd, target: Path | OwnedFd) -> None:
    """Mount a detached mount on a target, which is not followed if it is a symlink.

    Raises:
        StepError: ELOOP: the target is a symlink; ENOTDIR or EINVAL: one is a directory and the other is not.
    """
    dir_fd, path, name = place(target)
    failure = new_failure()
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
    failure = new_failure()
    check(lib.nsnap_forget_names(encode(path), failure), failure, str(path))


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
    failure = new_failure()
    check(lib.nsnap_unmount(encode(path), detach, failure), failure, str(path))


def create_user_namespace(uid_map: Sequence[IdRange], gid_map: Sequence[IdRange]) -> OwnedFd:
    """Return a user namespace that has these maps and no process in it.

    Raises:
        StepError: EPERM: no right to map those ids; EINVAL: ranges overlap, or are too many (340).
    """
    failure = new_failure()
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
    failure = new_failure()
    check(lib.nsnap_probe_mount(encode(path), probe, failure), failure, str(path))
    return MountProbe(mount_id=probe.mount_id, is_root=probe.is_root, filesystem_magic=probe.filesystem_magic)
