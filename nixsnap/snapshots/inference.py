"""Recognising a nix layer by its content.

Some clients unpack layers without passing annotations on (`ctr image import`, `ctr image pull` of containerd 1.x,
`docker load` into containerd's image store). Such a nix layer still holds an empty directory, or an empty file, for
each store path, all of 1970-01-01 00:00:00, and nothing else in the store. A layer that carries its software has
content there, or, where a store path happens to be empty, Nix's time for files, which is a second later.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

from nixsnap.mounts import filetrees
from nixsnap.nix.storepath import is_store_name

_OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque")


def infer_closure(files: Path, *, store_dir: Path, shown: Collection[str]) -> tuple[str, ...] | None:
    """The names of the store paths that a layer stands for; None where it is no nix layer.

    Args:
        files: The layer's files.
        store_dir: Where containers see the store.
        shown: Names of the store paths that nix layers below show already. A directory of that name was only touched
            by this layer, so it says nothing.

    Raises:
        OSError: The directory cannot be read.
    """
    # Most layers have nothing there, and an exception that passes through the C core takes longer to be made than this.
    if not os.path.lexists(f"{files}/{store_dir.parts[1]}"):
        return None
    try:
        store = filetrees.open_beneath(
            files, str(store_dir.relative_to("/")), flags=os.O_RDONLY | os.O_DIRECTORY
        )
    except OSError:  # no such directory, or a symlink or a file in its place
        return None
    names = []
    with store, os.scandir(store.fileno()) as entries:
        for entry in entries:
            if not is_store_name(entry.name) or not _stands_in(entry, store.fileno()):
                return None
            if entry.name in shown and entry.is_dir(follow_symlinks=False):
                if _is_opaque(entry, store.fileno()):  # somebody emptied the store path; leave it so
                    return None
                continue
            names.append(entry.name)
    return tuple(sorted(names)) or None


def _stands_in(entry: os.DirEntry[str], store_fd: int) -> bool:
    """Whether an entry is as nix layers have them."""
    return entry.stat(follow_symlinks=False).st_mtime_ns == 0 and _is_empty(entry, store_fd)


def _is_empty(entry: os.DirEntry[str], store_fd: int) -> bool:
    if entry.is_dir(follow_symlinks=False):
        with (
            contextlib.closing(_Directory(entry.name, store_fd)) as directory,
            os.scandir(directory.fd) as entries,
        ):
            return next(entries, None) is None
    status = os.stat(entry.name, dir_fd=store_fd, follow_symlinks=False)
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _is_opaque(entry: os.DirEntry[str], store_fd: int) -> bool:
    """Whether this layer put a directory of its own in place of the one below it."""
    with contextlib.closing(_Directory(entry.name, store_fd)) as directory:
        return any(name in _OPAQUE_XATTRS for name in os.listxattr(directory.fd))


class _Directory:
    """A directory's descriptor, for `contextlib.closing`."""

    def __init__(self, name: str, parent_fd: int) -> None:
        self.fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)

    def close(self) -> None:
        os.close(self.fd)
