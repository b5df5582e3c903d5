"""A file system of our own, where what ran before has left no traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import run, unmount_below

SIZE_BYTES = 8 * 2**30
"""Of a sparse file; ext4 gives it half a million inodes."""


@contextmanager
def fresh_file_system(directory: Path) -> Iterator[Path]:
    """Make an ext4 in a file in `directory`, and mount it there; all of it is gone when the block ends.

    ext4 gives no inode out again for a minute, or for five (recently_deleted() in fs/ext4/ialloc.c), and
    looks at each such inode again for every file it makes. After thousands of files were deleted, by an earlier
    benchmark or by anyone, making a thousand directories takes several times as long as usual.
    """
    image, target = directory / "ext4.img", directory / "ext4"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    run("mkfs.ext4", "-q", image, environment={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
    # Without noinit_itable the kernel goes on initialising it in the background for minutes.
    run("mount", "-o", "loop,noinit_itable", image, target)
    try:
        yield target
    finally:
        unmount_below(target)
        image.unlink()
