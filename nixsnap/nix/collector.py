"""Keeping out of the way of Nix's garbage collector.

A path that a client has asked Nix to spare may be deleted all the same, if a collector that is running has already put
it on its list: it guards the path that it is at against clients who want to fetch it anew, but not those that go
together with it (libstore/gc.cc, `pending`; seen with Nix 2.8, some once in a thousand pulls beside a collector in a
loop). What is fetched then is left half deleted, and valid to Nix.

So nothing is fetched or rooted while a collector runs, nor does one begin meanwhile: a collector holds `gc.lock` in the
state directory exclusively, and we hold it shared, as Nix's own clients did until 2.6. Whoever wants a closure holds it
until that is rooted, and each fetch holds it too, since one may outlast all who asked for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from nixsnap.nix.caller import Caller
from nixsnap.nix.filelock import acquire

log = logging.getLogger(__name__)


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
        acquire(fd, fcntl.LOCK_SH, caller, waiting_for="Nix's garbage collector to end")
        yield
    finally:
        os.close(fd)  # and the lock with it
