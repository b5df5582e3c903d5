"""What a test needs of the machine: each function skips with the name of what is missing.

The one module of the lab that knows pytest. packaging/test installs everything, and there a skip is a failure.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.cache import LAB_DIRECTORY, unpacked_program
from lab.containerd import Installation, containerd_series
from lab.machine import missing_programs
from lab.nix import missing_for_nix
from lab.rootless import Variant, missing_for_rootless, rootlesskit_variants
from lab.systemd import missing_for_systemd


def need_nix() -> None:
    """Closures can be built."""
    _skip_for_want_of(missing_for_nix())


def need_containerd(series: str) -> Installation:
    """Containers can be run by this containerd series; returns its installation."""
    _skip_for_want_of(missing_programs())
    installation = containerd_series(series)
    if installation is None:
        pytest.skip(f"this machine lacks containerd {series}")
    return installation


def need_rootless(name: str = "1") -> Variant:
    """Rootless nodes can run; returns the variant of rootlesskit, "1", "2" or "2-detach-netns"."""
    _skip_for_want_of(missing_for_rootless())
    variant = rootlesskit_variants()[name]
    if variant is None:
        pytest.skip(f"this machine lacks rootlesskit {name}")
    return variant


def need_systemd() -> None:
    """A systemd can be process 1 of a namespace."""
    _skip_for_want_of(missing_for_systemd())


def need_unpacked(path: str) -> Path:
    """A program of the lab's directory is there; returns it."""
    program = unpacked_program(path)
    if program is None:
        pytest.skip(f"this machine lacks {LAB_DIRECTORY / path}, which packaging/test brings")
    return program


def _skip_for_want_of(missing: list[str]) -> None:
    if missing:
        pytest.skip(f"this machine lacks {', '.join(missing)}")
