"""The store as files, while an image is built: where links lead, and what is a directory."""

from __future__ import annotations

import os
import posixpath
import stat

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.nix.storepath import StorePath, shorten


def real_path(path: str, store_dir: str) -> str:
    """Follow every link in `path`; what is in the store is named by `store_dir`, even if that is a link.

    Raises:
        NotFoundError: It leads to nothing.
        InvalidArgumentError: It leads nowhere (round in a circle, say), or no file can have that name.
    """
    try:
        real = posixpath.realpath(path, strict=True)
    except FileNotFoundError as exc:
        raise NotFoundError(f"{shorten(path)} does not exist") from exc
    except (OSError, ValueError) as exc:
        raise InvalidArgumentError(f"{shorten(path)} leads nowhere: {exc}") from exc
    store_real = posixpath.realpath(store_dir)
    inside = real.startswith(f"{store_real}/")
    return store_dir + real[len(store_real) :] if inside else real


def store_path_of(path: str, store_dir: str) -> StorePath:
    """The store path that `path` is or lies in.

    Args:
        path: Absolute, in normal form but for slashes at its end.
        store_dir: The store directory.

    Raises:
        InvalidArgumentError: It is neither.
    """
    prefix = f"{store_dir}/"
    relative = path.rstrip("/")
    if not relative.startswith(prefix) or posixpath.normpath(relative) != relative:
        raise InvalidArgumentError(f"{shorten(path)} is not a path in {store_dir}")
    name = relative[len(prefix) :].partition("/")[0]
    return StorePath.parse(f"{prefix}{name}", store_dir=store_dir)


def is_directory(path: StorePath) -> bool:
    """Whether a store path is a directory, or a link to one.

    A link counts as what it leads to, because a runtime that bind-mounts store paths (as the Go snapshotter
    does) needs a mount point of that kind. A link to nothing counts as a file.

    Raises:
        NotFoundError: The store has no such path.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError as exc:
        raise NotFoundError(f"store path {path} does not exist", hint="realise it before building") from exc
    return posixpath.isdir(path) if stat.S_ISLNK(mode) else stat.S_ISDIR(mode)
