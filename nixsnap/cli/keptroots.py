"""The directory of roots that `nixsnap realise --root` makes: whole or not at all, and of one run of the command."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from nixsnap.errors import InvalidArgumentError


@contextlib.contextmanager
def kept_roots(root: Path) -> Iterator[int]:
    """Have a block make numbered directories of roots in `root`, in place of those that an earlier one made.

    What was there holds until the block has ended well, and is removed then. If it does not end well, what it made is
    removed, and the directory too if it was not there before.

    Args:
        root: The directory, absolute.

    Yields:
        The first number that is free, with all that follow.

    Raises:
        InvalidArgumentError: It holds something else, or cannot be made.
    """
    was_there = root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        before = _numbered(root)
    except OSError as exc:
        raise InvalidArgumentError(
            f"--root {str(root)!r} cannot be made a directory of roots: {exc.strerror}",
            hint="name a directory that is not there yet, where you may write",
        ) from exc
    doomed: set[Path] | None = None
    try:
        yield max((int(path.name) for path in before), default=0) + 1
        doomed = before
    finally:
        for path in _numbered(root) - before if doomed is None else doomed:
            shutil.rmtree(path)
        if doomed is None and not was_there:
            root.rmdir()


def _numbered(root: Path) -> set[Path]:
    """The directories of roots."""
    found = set(root.iterdir())
    for path in found:
        if not path.name.isdecimal() or path.is_symlink() or not path.is_dir():
            raise InvalidArgumentError(
                f"--root {str(root)!r} is no directory of roots: it holds {path.name!r}",
                hint="name a directory that is not there yet, or one that an earlier --root made",
            )
    return found
