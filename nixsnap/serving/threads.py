"""Threads that wait for events and work on what they find: as few switches between them as can be.

One thread waits. What an event asks to be done it does itself, since waking another thread up takes longer than most
calls do. Two things keep that from holding up others: what else has arrived by then goes to other threads at once; and
while the one works a watch looks every five milliseconds whether it is still at the same work, and if so has another
thread wait in its place, as the monitor of Go's scheduler does for threads in long system calls (runtime/proc.go,
sysmon).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import attrs

log = logging.getLogger(__name__)

Work = Callable[[], None]

_PATIENCE_SECONDS: Final = 0.005
"""How long others wait at most, more or less, for a thread that works instead of waiting for events."""

_IDLE_ROUNDS: Final = 200
"""Rounds of the watch without any work after which it rests: a second."""

_GATHERED: Final = 16
"""Events that are looked at in a row before the first work is begun."""


class Finished(Exception):  # noqa: N818 - it is an end, not an error
    """No more events will come."""


@attrs.define(eq=False)
class _Rest:
    """Where a thread rests until it is given work, or told to wait for events."""

    lock: threading.Lock = attrs.field(factory=threading.Lock)
    work: Work | None = None
    dismissed: bool = False


class Crew:
    """The threads of a server.

    Args:
        wait: Waits for an event, at most until the time that it is given (None: for ever; 0: not at all), and deals
            with it. It returns whether there was one, and the work that it asks for, if it does. It raises `Finished`
            when there will be no more, and nothing else. It is called by one thread at a time.
        limit: How many threads there may be. When all of them work, events wait.
        name: What the threads are called.
    """

    def __init__(
        self, wait: Callable[[float | None], tuple[bool, Work | None]], *, limit: int, name: str
    ) -> None:
        self._wait = wait
        self._limit = limit
        self._name = name
        self._guard = threading.Lock()
        self._threads = 0
        self._resting: list[_Rest] = []
        self._finished = False
        self._leader: object = None  # stands for the thread that waits for events
        self._works = 0  # how many that thread and those before it began
        self._busy = 0  # the number of the one that it is at; 0: none
        self._watch_rests = False
        self._watch_bell = threading.Lock()

    def start(self) -> None:
        """Begin."""
        self._watch_bell.acquire()
        threading.Thread(target=self._watch, name=f"{self._name}-watch", daemon=True).start()
        with self._guard:
            self._put_to(None)

    def hand_over(self, work: Work) -> Work | None:
        """Have another thread do some work at once; it is returned if there is none, to be done by the caller's.

        For work that waits for events itself: no other thread would look for them before the watch had seen to it.
        """
        with self._guard:
            return None if self._put_to(work) else work

    # --- a thread's life ---

    def _put_to(self, work: Work | None) -> bool:
        """Have a thread do some work, or wait for events (None); False if there are too many. Under the guard."""
        if self._resting:
            rest = self._resting.pop()
            rest.work = work
            rest.lock.release()
            return True
        if self._threads == self._limit:
            return False
        name = f"{self._name}-{self._threads + 1}"
        try:
            # Daemon threads: a call that hangs must not keep the process from ending.
            threading.Thread(target=self._live, args=(work,), name=name, daemon=True).start()
        except RuntimeError as exc:  # a limit of the system's (pids.max, RLIMIT_NPROC)
            log.warning("cannot start another thread; calls wait for one to be free error=%s", exc)
            return False
        self._threads += 1
        return True

    def _live(self, work: Work | None) -> None:
        rest = _Rest()
        rest.lock.acquire()
        while True:
            if work is None:
                try:
                    self._lead()
                except Finished:
                    self._finish()
                    return
            else:
                _do(work)
            work = None  # a call that is over must not live on with a thread that rests
            with self._guard:
                if self._finished:
                    return
                self._resting.append(rest)
            rest.lock.acquire()
            if rest.dismissed:
                return
            work, rest.work = rest.work, None

    def _lead(self) -> None:
        """Wait for events, until another thread does so instead."""
        me = self._leader = object()
        while True:
            _, work = self._wait(None)
            if work is None:
                continue
            self._share_out()
            self._works += 1
            self._busy = self._works
            if self._watch_rests:
                self._wake_watch()
            _do(work)
            del work  # a call that is over must not live until the next one comes
            with self._guard:
                if self._leader is not me:
                    return
                self._busy = 0

    def _share_out(self) -> None:
        """Give what has arrived meanwhile to other threads."""
        for _ in range(_GATHERED):
            was_there, work = self._wait(0.0)
            if not was_there:
                return
            if work is not None and self.hand_over(work) is not None:
                _do(work)

    def _finish(self) -> None:
        with self._guard:
            self._finished = True
            for rest in self._resting:
                rest.dismissed = True
                rest.lock.release()
            self._resting.clear()
        self._wake_watch()

    # --- the watch ---

    def _watch(self) -> None:
        """Replace the thread that waits for events whenever it works for long."""
        seen = idle = 0
        while not self._finished:
            time.sleep(_PATIENCE_SECONDS)
            busy = self._busy
            if busy and busy == seen:
                self._replace(busy)
            seen = busy
            idle = 0 if busy else idle + 1
            if idle == _IDLE_ROUNDS:
                idle = 0
                self._rest_watch()

    def _replace(self, work: int) -> None:
        with self._guard:
            if self._busy == work:
                leader, self._leader, self._busy = self._leader, None, 0
                if not self._put_to(None):
                    self._leader, self._busy = leader, work

    def _rest_watch(self) -> None:
        self._watch_rests = True
        # A thread says that it works before it looks whether the watch rests, so one of the two sees the other.
        if self._busy or self._finished:
            self._wake_watch()
        self._watch_bell.acquire()

    def _wake_watch(self) -> None:
        with self._guard:
            if self._watch_rests:
                self._watch_rests = False
                self._watch_bell.release()


def _do(work: Work) -> None:
    try:
        work()
    except Exception:
        log.exception("a thread's work failed unforeseen")
