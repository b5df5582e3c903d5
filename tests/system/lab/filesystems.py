"""File systems of a test's own, each in a file, and what a power cut would leave of one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.mounts import unmount_below
from lab.processes import run

TOOLS_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def make_file_system(image: Path, kind: str, *options: str, size_bytes: int) -> None:
    """Make a file with a file system in it, by `mkfs.KIND`."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    run(f"mkfs.{kind}", "-q", *options, image, environment={"PATH": TOOLS_PATH})


def mount_image(image: Path, target: Path, *, options: str = "loop") -> None:
    """Mount the file system in a file on a directory, which is made."""
    target.mkdir()
    run("mount", "-o", options, image, target)


@contextmanager
def after_power_cut(image: Path, target: Path) -> Iterator[None]:
    """Mount on a directory what the disk would have, had the machine lost power just now.

    That is a copy of the file that the file system is in: of what was written into it the kernel has passed on what was
    synced, or was old enough to be written back, and no more. Mounting the copy replays its journal.
    """
    copy = image.with_suffix(".cut")
    shutil.copyfile(image, copy)
    mount_image(copy, target)
    try:
        yield
    finally:
        unmount_below(target)
        target.rmdir()
        copy.unlink()
