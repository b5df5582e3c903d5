"""The network namespace that rootlesskit detaches (`--detach-netns`).

rootlesskit then leaves its child in the network that it was started in itself, and puts the new one's namespace into
`$ROOTLESSKIT_STATE_DIR/netns`. Whoever is to reach the world as the containers do enters that.

A namespace is entered by a thread, not by a process (setns(2)), and what a thread starts is born into its namespace.
So a daemon's own threads stay where they are, and each program that is to run inside is started by a thread that
enters and ends.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from nixsnap.errors import FailedPreconditionError

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h


def detached() -> Path | None:
    """The namespace that rootlesskit detached, if we run below one that did."""
    directory = os.environ.get("ROOTLESSKIT_STATE_DIR")
    if not directory:
        return None
    path = Path(directory) / "netns"
    return path if path.exists() else None


def enter(path: Path) -> None:
    """Put the calling thread into a network namespace, for as long as it lives; also what it starts from now on.

    Raises:
        FailedPreconditionError: It is no network namespace, or we may not enter it.
    """
    # Not by pyroute2, whose import takes 20 MiB; os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(fd, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(fd)
    except OSError as exc:
        raise FailedPreconditionError(
            f"cannot enter rootlesskit's network namespace {str(path)!r}: {exc.strerror}",
            hint="run it within rootlesskit's user namespace, or unset ROOTLESSKIT_STATE_DIR",
        ) from exc


def within(start: Callable[[], T]) -> T:
    """Start something in rootlesskit's detached network namespace where there is one, else right here.

    Args:
        start: Starts a program, or makes a socket; it runs on a thread that ends with it.

    Returns:
        What `start` returns.

    Raises:
        FailedPreconditionError: The namespace cannot be entered.
    """
    path = detached()
    if path is None:
        return start()

    def inside() -> T:
        enter(path)
        return start()

    with ThreadPoolExecutor(1, thread_name_prefix="netns") as pool:
        return pool.submit(inside).result()
