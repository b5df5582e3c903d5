"""What is to be done after a while, unless it is called off: all of it on one thread.

`threading.Timer` has a thread for each; a caller who gives up a closure of thousands of paths would leave as many.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

log = logging.getLogger(__name__)


class Appointment:
    """Something that is to be done."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def call_off(self) -> None:
        """Do not do it; of no effect once it has begun."""
        self._action = None

    def keep(self) -> None:
        """Do it now."""
        action, self._action = self._action, None
        if action is not None:
            try:
                action()
            except Exception:
                log.exception("what was to be done after a while failed")


class _Agenda:
    """All appointments, and the thread that keeps them once there has been one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: list[tuple[float, int, Appointment]] = []
        self._numbers: Iterator[int] = itertools.count()
        self._has_thread = False

    def add(self, due_seconds: float, appointment: Appointment) -> None:
        with self._changed:
            heapq.heappush(self._entries, (due_seconds, next(self._numbers), appointment))
            self._changed.notify()
            if self._has_thread:
                return
            try:
                threading.Thread(target=self._run, name="later", daemon=True).start()
                self._has_thread = True
            except RuntimeError as exc:  # a limit of the system's (pids.max, RLIMIT_NPROC)
                log.warning("what is to be done after a while waits for a thread error=%s", exc)

    def _run(self) -> None:
        while True:
            self._next().keep()

    def _next(self) -> Appointment:
        with self._changed:
            while not self._entries or (left := self._entries[0][0] - time.monotonic()) > 0:
                self._changed.wait(left if self._entries else None)
            return heapq.heappop(self._entries)[2]


_agenda: Final = _Agenda()


def later(seconds: float, action: Callable[[], object]) -> Appointment:
    """Have something done after a while, on a thread of its own; it must be quick, for others wait for that thread."""
    appointment = Appointment(action)
    _agenda.add(time.monotonic() + seconds, appointment)
    return appointment
