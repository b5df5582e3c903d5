"""Cgroups of a run's own, in each hierarchy that this machine has mounted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab.mounts import mounts
from lab.processes import wait_until

V1, V2 = "cgroup", "cgroup2"
"""The types of file system that hierarchies are."""

_PREFIX: Final = "nixsnap-test-"
_OURS: Final = re.compile(rf"{_PREFIX}(\d+)-.*")


def hierarchies(*fs_types: str) -> list[Path]:
    """Where this machine's hierarchies are mounted."""
    return [mount.point for mount in mounts() if mount.fs_type in fs_types]


@contextmanager
def cgroups(name: str, *fs_types: str) -> Iterator[list[Path]]:
    """Make a cgroup in each hierarchy of these types, named for this run; what is in them has to end with the block."""
    made = [top / f"{_PREFIX}{os.getpid()}-{name}" for top in hierarchies(*fs_types)]
    _sweep()
    try:
        for cgroup in made:
            _make(cgroup)
        yield made
    finally:
        # A process that was killed may still be on its way out.
        wait_until(lambda: all(_remove(cgroup) for cgroup in made), what=f"be empty: {made}")


def _remove(cgroup: Path) -> bool:
    """Remove a cgroup with all below it; whether that could be done: not while a process is in one of them."""
    try:
        for below in sorted(filter(Path.is_dir, cgroup.rglob("*")), reverse=True):
            below.rmdir()
        cgroup.rmdir()
    except OSError:
        return not cgroup.exists()
    return True


def _make(cgroup: Path) -> None:
    cgroup.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):  # of v1, without which it takes no process
        if (cgroup / name).exists() and not (cgroup / name).read_text().strip():
            (cgroup / name).write_text((cgroup.parent / name).read_text())


def _sweep() -> None:
    """Remove what runs that were killed left."""
    for top in hierarchies(V1, V2):
        for cgroup in top.glob(f"{_PREFIX}*"):
            run = _OURS.fullmatch(cgroup.name)
            if run and not Path("/proc", run[1]).exists():
                _remove(cgroup)
