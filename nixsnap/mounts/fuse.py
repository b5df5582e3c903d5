"""fuse-overlayfs: overlays by a program, where the kernel gives a user namespace none of its own (before Linux 5.11).

A mount is served by a process of its own, which the program leaves behind when it ends. That process belongs to nobody:
it outlives whoever started it, and it ends with the mount. If it is killed the mount stays, and answers ENOTCONN.
"""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Final

from nixsnap.mounts.errors import StepError
from nixsnap.mounts.operations import OverlayMount

PROGRAM: Final = "fuse-overlayfs"

_TIMEOUT_SECONDS: Final = 60.0


def mount(overlay: OverlayMount, target: Path) -> None:
    """Mount an overlay on a directory.

    Args:
        overlay: Its options are for the kernel's own overlays, and are left out.
        target: The directory.

    Raises:
        StepError: ENOENT: there is no such program; EIO: it failed, and the detail is what it said.
    """
    command = [PROGRAM, "-o", ",".join(describe_options(overlay)), str(target)]
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError as exc:
        raise StepError(errno.ENOENT, "run", PROGRAM) from exc
    except subprocess.TimeoutExpired as exc:
        raise StepError(errno.ETIMEDOUT, PROGRAM, str(target)) from exc
    if result.returncode != 0:
        said = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StepError(errno.EIO, PROGRAM, str(target), said[-1] if said else f"status {result.returncode}")


def describe_options(overlay: OverlayMount) -> list[str]:
    """The overlay as the program takes it: as the kernel does in one text, without the kernel's own options."""
    return [option for option in overlay.describe().options if option not in overlay.options]
