"""A few threads for one kind of work, which never keep the program from ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from nixsnap.registry.retry import AbandonedError, Clock

_T = TypeVar("_T")
_R = TypeVar("_R")

_LAST_WORDS_SECONDS: Final = 8.0


def in_parallel(function: Callable[[_T], _R], items: Sequence[_T], *, threads: int, clock: Clock) -> list[_R]:
    """Call a function for each item, several at a time.

    The threads are daemons, unlike those of `concurrent.futures`, for which the interpreter would wait at its end: one
    that is interrupted while a registry takes minutes over an answer must not.

    Args:
        function: Raises AbandonedError soon after the clock was stopped.
        items: What it is called with.
        threads: At most so many at a time.
        clock: Stopped at the first failure, and when the caller is interrupted.

    Returns:
        The results in the order of the items.

    Raises:
        AbandonedError: Someone else stopped the clock.
        BaseException: What the first call that failed raised.
    """
    crew = _Crew(function, items, clock)
    return crew.work(min(threads, len(items)))


class _Crew(Generic[_T, _R]):
    """The threads and what they share."""

    def __init__(self, function: Callable[[_T], _R], items: Sequence[_T], clock: Clock) -> None:
        self._function = function
        self._clock = clock
        self._pending = list(enumerate(items))[::-1]
        self._lock = threading.Lock()
        self._results: dict[int, _R] = {}
        self._failures: list[BaseException] = []
        # Counts threads that have ended. Thread.join takes a thread for ended once a signal's exception has come out of
        # it, up to Python 3.12 (bpo-45274).
        self._ended = threading.Semaphore(0)

    def work(self, threads: int) -> list[_R]:
        """Start the threads and wait for them; interrupted, give them some time to tidy up at the registry."""
        working = 0
        try:
            for _ in range(threads):
                threading.Thread(target=self._work, daemon=True).start()
                working += 1
            while working:
                self._ended.acquire()
                working -= 1
        except BaseException:
            self._clock.stop()
            deadline = time.monotonic() + _LAST_WORDS_SECONDS
            while working and self._ended.acquire(timeout=max(0.0, deadline - time.monotonic())):
                working -= 1
            raise
        if self._failures:
            raise self._failures[0]
        self._clock.check()
        return [self._results[place] for place in sorted(self._results)]

    def _work(self) -> None:
        try:
            while not self._failures and (task := self._take()) is not None:
                place, item = task
                self._results[place] = self._function(item)
        except AbandonedError:
            pass  # as it should
        except BaseException as exc:  # noqa: BLE001 - it is raised again in the caller's thread
            self._failures.append(exc)
            self._clock.stop()
        finally:
            self._ended.release()

    def _take(self) -> tuple[int, _T] | None:
        with self._lock:
            return self._pending.pop() if self._pending else None
