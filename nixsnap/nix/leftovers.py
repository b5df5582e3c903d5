"""Ending what a daemon that was killed left running.

A program that fetches does not notice that whoever started it is gone: it goes on for as long as a cache hangs, with
Nix's locks on what it fetches. (A connection does notice.) So each program of a daemon carries in its environment whose
it is, and the next daemon of the same root directory ends those that it finds. The environment, unlike a process group
or the parent's death signal, which a thread's end sends too, also reaches what an external builder started.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nixsnap.nix import process
from nixsnap.nix.later import later

log = logging.getLogger(__name__)

_OWNER: Final = "NIXSNAP_OWNER"


def take_over(root: Path) -> None:
    """End what earlier daemons of a root directory left, and have programs carry that they are this one's.

    Does not wait for their end: they have `process.END_SECONDS` until they are killed.

    Args:
        root: The root directory, which no other daemon uses.
    """
    status = root.stat()
    # Not by the path alone: a container's daemon, which may have the same, is not ours to end.
    owner = f"{status.st_dev}:{status.st_ino}:{root}"
    process.carry({_OWNER: owner})
    left = list(_owned_by(owner))
    for pid, pid_fd in left:
        log.warning("ending what an earlier daemon left running pid=%d", pid)
        _signal(pid_fd, signal.SIGTERM)
    if left:
        later(process.END_SECONDS, lambda: _kill([pid_fd for _, pid_fd in left]))


def _owned_by(owner: str) -> Iterator[tuple[int, int]]:
    """The processes that carry an owner, with a descriptor of each, which the caller closes."""
    variable = os.fsencode(f"{_OWNER}={owner}")
    for name in os.listdir("/proc"):  # noqa: PTH208 - names, not paths
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            pid_fd = os.pidfd_open(int(name))  # first, so that what is read is of this very process
            if _carries(int(name), variable):
                yield int(name), pid_fd
            else:
                os.close(pid_fd)


def _carries(pid: int, variable: bytes) -> bool:
    try:
        return variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill(pid_fds: list[int]) -> None:
    for pid_fd in pid_fds:
        _signal(pid_fd, signal.SIGKILL)
        os.close(pid_fd)


def _signal(pid_fd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pid_fd, number)
