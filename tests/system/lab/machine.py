"""What this machine can and cannot exercise, for the head of a test run."""

from __future__ import annotations

import os
import platform
import shutil

from lab.cache import LAB_DIRECTORY
from lab.containerd import containerd_installations
from lab.nix import missing_for_nix
from lab.processes import run

SERIES = ("1.6", "1.7", "2")
"""The containerd releases that nixsnap promises to work with, each tested."""


def _first_line(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        return f"{argv[0]}: not here"
    return run(*argv, check=False).stdout.partition("\n")[0]


def missing_programs() -> list[str]:
    """The programs that system tests run and that this machine lacks."""
    return [name for name in ("runc", "nix-build", "nix-store", "setpriv") if shutil.which(name) is None]


def describe_machine() -> list[str]:
    """One line per fact: kernel and user, containerd's releases, runc and Nix, and what is missing."""
    found = {installation.series: installation.version for installation in containerd_installations()}
    missing = [
        *(f"containerd {series}" for series in SERIES if series not in found),
        *missing_programs(),
        *missing_for_nix(),
        *([] if os.geteuid() == 0 else ["root"]),
    ]
    return [
        f"kernel: {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs, uid {os.geteuid()}",
        f"containerd: {', '.join(found.values()) or 'none'} (lab: {LAB_DIRECTORY})",
        f"runtime: {_first_line('runc', '--version')}; {_first_line('nix-store', '--version')}",
        f"cannot be exercised here for want of: {', '.join(missing) or 'nothing'}",
    ]
