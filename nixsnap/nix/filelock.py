"""Waiting for a lock on a file, for as long as somebody wants it."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from typing import Final

from nixsnap.nix.caller import Caller

log = logging.getLogger(__name__)

# A collector may take many minutes, and hundreds of pulls may wait for it.
_FIRST_LOOK_SECONDS: Final = 0.01
_LONGEST_LOOK_SECONDS: Final = 0.25
_LOG_SECONDS: Final = 1.0


def acquire(fd: int, operation: int, caller: Caller, *, waiting_for: str) -> None:
    """Take a lock by flock(2), which goes with the descriptor.

    Args:
        fd: The open file.
        operation: `LOCK_SH` or `LOCK_EX`.
        caller: Who waits.
        waiting_for: What, in words.

    Raises:
        CancelledError: The caller went away.
    """
    log_seconds = time.monotonic() + _LOG_SECONDS
    look_seconds = _FIRST_LOOK_SECONDS
    gone = threading.Event()
    with caller.told(gone.set):
        while not _try(fd, operation):
            caller.check(waiting_for=waiting_for)
            if time.monotonic() > log_seconds:
                log.info("waiting for %s", waiting_for)
                log_seconds = float("inf")
            gone.wait(look_seconds)
            look_seconds = min(2 * look_seconds, _LONGEST_LOOK_SECONDS)


def _try(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
