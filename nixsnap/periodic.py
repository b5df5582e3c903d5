"""Something that is done now and then, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def periodically(
    action: Callable[[], bool], *, name: str, interval_seconds: float, retry_seconds: float
) -> Iterator[None]:
    """Do something at once, and again and again until the block ends; what is under way then is waited for.

    Args:
        action: Does it and tells whether all went well. What it raises is logged, and it has not gone well then.
        name: The thread's name.
        interval_seconds: How long to wait after all went well.
        retry_seconds: How long to wait after it did not, the first time; each time twice as long, up to the interval.
    """
    stop = threading.Event()

    def run() -> None:
        delay = retry = 0.0
        while not stop.wait(delay):
            retry = 0.0 if _went_well(action, name) else min(max(2 * retry, retry_seconds), interval_seconds)
            delay = retry or interval_seconds

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _went_well(action: Callable[[], bool], name: str) -> bool:
    try:
        return action()
    except Exception:  # whatever it is, a daemon that runs for months must not go without this from then on
        log.exception("%s failed unforeseen", name)
        return False
