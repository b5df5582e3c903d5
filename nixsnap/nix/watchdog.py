"""Ending work of which nothing has been heard for too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs


@attrs.define
class Watch:
    """Whether the watchdog has bitten."""

    bitten: bool = False


@contextmanager
def watchdog(
    heard_seconds: Callable[[], float], *, limit_seconds: float, bite: Callable[[], None]
) -> Iterator[Watch]:
    """Watch over the block.

    Args:
        heard_seconds: When something was last heard, by the monotonic clock; called on another thread. What was
            before the block does not count as silence.
        limit_seconds: How long silence may last; 0 is for ever.
        bite: Ends the work; called once, on another thread.
    """
    watch = Watch()
    if not limit_seconds:
        yield watch
        return
    over = threading.Event()
    begun_seconds = time.monotonic()

    def guard() -> None:
        while (left := max(begun_seconds, heard_seconds()) + limit_seconds - time.monotonic()) > 0:
            if over.wait(left):
                return
        watch.bitten = True
        bite()

    thread = threading.Thread(target=guard, name="nix-watchdog", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
