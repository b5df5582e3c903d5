"""Trees that are hard to walk."""

from __future__ import annotations

import os
from pathlib import Path

from nixsnap.mounts.values import OwnedFd


def make_deep(root: Path, depth: int) -> None:
    """Make `depth` directories named "d" inside each other, with a file in the last: no path is as long as that."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    finally:
        os.close(fd)


def names(directory: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir())


def through(tree: OwnedFd) -> Path:
    """The way into a mount that is attached nowhere."""
    return Path(f"/proc/self/fd/{tree.fileno()}")
