"""A file system of our own, where what ran before has left no traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import unmount_below
from lab.filesystems import make_file_system, mount_image

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
    make_file_system(image, "ext4", size_bytes=SIZE_BYTES)
    # Without noinit_itable the kernel goes on initialising it in the background for minutes.
    mount_image(image, target, options="loop,noinit_itable")
    try:
        yield target
    finally:
        unmount_below(target)
        image.unlink()
