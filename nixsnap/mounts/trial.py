"""Trying things out: in a temporary directory, of which nothing is left; what a kill leaves, the next start sweeps."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from nixsnap.mounts import filetrees, kernel
from nixsnap.mounts.errors import StepError
from nixsnap.mounts.operations import OverlayMount


@attrs.frozen
class Feature:
    """Whether something can be done here; true if so."""

    missing: str | None = None
    """Why not, as text for a log or a person; None if it can be done."""

    def __bool__(self) -> bool:
        return self.missing is None


_PREFIX = ".probe-"
_MISSING = {
    getattr(errno, name)
    for name in ("EOPNOTSUPP", "EPERM", "EACCES", "EINVAL", "ENODEV", "ENOSYS", "ENOTTY", "EIO")
}
"""What is said by a kernel or file system that cannot do a thing; EIO: by overlays in user namespaces."""


def attempted(root: Path, attempt: Callable[[Path], str | None]) -> Feature:
    """Run an attempt in a temporary directory; it returns, or raises as OSError, what is missing."""
    scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    try:
        return Feature(attempt(scratch))
    except OSError as error:
        if error.errno not in _MISSING:  # a full disk says nothing about what the kernel can do
            raise
        return Feature(str(error))
    finally:
        filetrees.remove_tree(scratch)


def sweep(root: Path) -> None:
    """Remove what attempts in a directory left that were killed; none may go on there.

    Raises:
        StepError: The kernel refused.
    """
    for scratch in root.glob(f"{_PREFIX}*"):
        for place in scratch.iterdir():
            _detach_all(place)
        filetrees.remove_tree(scratch)


def _detach_all(place: Path) -> None:
    while True:
        try:
            kernel.detach(place)
        except StepError as exc:
            if exc.errno != errno.EINVAL:  # nothing is mounted there any more
                raise
            return


def directories(parent: Path, names: str) -> list[Path]:
    """Make directories of these names."""
    made = [parent / name for name in names.split()]
    for directory in made:
        directory.mkdir()
    return made


@contextmanager
def mounted(mount: OverlayMount, target: Path) -> Iterator[None]:
    """Have an overlay mounted as long as the block lasts."""
    mount.mount(target)
    with unmounting(target):
        yield


@contextmanager
def unmounting(target: Path) -> Iterator[None]:
    """Take a mount down when the block ends."""
    try:
        yield
    finally:
        kernel.detach(target)
