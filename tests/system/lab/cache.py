"""What packaging/test unpacked for us, and lasts from run to run."""

from __future__ import annotations

import os
from pathlib import Path

LAB_DIRECTORY = Path(os.environ.get("NIXSNAP_LAB", "/var/cache/nixsnap-lab"))
"""Holds the containerds that cannot be installed side by side, and more; packaging/lib/common.sh fills it."""


def unpacked_program(path: str) -> Path | None:
    """A program that was unpacked or built there, by its path below the lab's directory; None when it was not."""
    program = LAB_DIRECTORY / path
    return program if os.access(program, os.X_OK) else None


def static_busybox() -> Path | None:
    """The statically linked busybox that was unpacked, else the machine's own, else None."""
    for candidate in (LAB_DIRECTORY / "busybox/bin/busybox", Path("/bin/busybox")):
        # A program with an interpreter (PT_INTERP) needs a C library that closures of ours do not hold.
        if candidate.exists() and b"/ld-linux" not in candidate.read_bytes():
            return candidate
    return None
