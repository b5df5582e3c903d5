"""Keeping out of the way of Nix's garbage collector.

A path that a client has asked Nix to spare may be deleted all the same, if a collector that is running has already put
it on its list: it guards the path that it is at against clients who want to fetch it anew, but not those that go
together with it (libstore/gc.cc, `pending`; seen with Nix 2.8, some once in a thousand pulls beside a collector in a
loop). What is fetched then is left half deleted, and valid to Nix.

So nothing is fetched or rooted while a collector runs, nor does one begin meanwhile: a collector holds `gc.lock` in the
state directory exclusively, and we hold it shared, as Nix's own clients did until 2.6.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from nixsnap.nix.caller import Caller
from nixsnap.nix.progress import ProgressSink, ignore
from nixsnap.nix.realise import ClosureRequest, Realiser
from nixsnap.nix.storepath import StorePath

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.01
_LOG_SECONDS: Final = 1.0
_WAITING_FOR: Final = "Nix's garbage collector to end"


@attrs.frozen(kw_only=True)
class CollectorGuard:
    """Realises while no garbage collector runs.

    Attributes:
        realiser: Does it.
        lock: The collector's lock.
    """

    realiser: Realiser
    lock: Path

    def realise(
        self,
        request: ClosureRequest,
        *,
        gcroots: Path,
        progress: ProgressSink = ignore,
        caller: Caller | None = None,
    ) -> tuple[StorePath, ...]:
        """As `Realiser.realise` says, once no collector runs."""
        with no_collector(self.lock, caller or Caller()):
            return self.realiser.realise(request, gcroots=gcroots, progress=progress, caller=caller)

    def close(self) -> None:
        """As `Realiser.close` says."""
        self.realiser.close()


@contextlib.contextmanager
def no_collector(lock: Path, caller: Caller) -> Iterator[None]:
    """Wait until no collector runs, and let none begin as long as the block lasts.

    Where the lock is out of reach, as that of a daemon of another user, this does nothing.

    Args:
        lock: `gc.lock`; it is made if its directory is there.
        caller: Who waits.

    Raises:
        CancelledError: The caller went away.
    """
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        log.debug("cannot keep Nix's garbage collector away lock=%s error=%s", lock, exc)
        yield
        return
    try:
        _acquire(fd, caller)
        yield
    finally:
        os.close(fd)  # and the lock with it


def _acquire(fd: int, caller: Caller) -> None:
    log_seconds = time.monotonic() + _LOG_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            caller.check(waiting_for=_WAITING_FOR)
            if time.monotonic() > log_seconds:
                log.info("waiting for %s", _WAITING_FOR)
                log_seconds = float("inf")
            time.sleep(_POLL_SECONDS)
        else:
            return
