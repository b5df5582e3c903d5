"""The threads of a server, without gRPC: events from a queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nixsnap.serving.threads import Crew, Finished

WAIT_SECONDS = 20


class Events:
    """A crew, and what it waits for: functions to run, None for an event that asks for nothing, or the end."""

    END = object()

    def __init__(self, limit: int) -> None:
        self.queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.waiters = 0
        self.most_waiters = 0
        self._guard = threading.Lock()
        self.crew = Crew(self._wait, limit=limit, name="test")

    def _wait(self, deadline: float | None) -> tuple[bool, Callable[[], None] | None]:
        with self._guard:
            self.waiters += 1
            self.most_waiters = max(self.waiters, self.most_waiters)
        try:
            event = self.queue.get(timeout=None if deadline is None else 0.0001)
        except queue.Empty:
            return False, None
        finally:
            with self._guard:
                self.waiters -= 1
        if event is self.END:
            self.queue.put(event)
            raise Finished
        return True, event


@pytest.fixture
def events() -> Iterator[Events]:
    events = Events(limit=4)
    events.crew.start()
    yield events
    events.queue.put(Events.END)


def ran(events: Events, count: int) -> list[str]:
    """The names of the threads that ran `count` functions, each queued when the one before it had run."""
    names = []
    for _ in range(count):
        done = threading.Event()

        def work(done: threading.Event = done) -> None:
            names.append(threading.current_thread().name)
            done.set()

        events.queue.put(work)
        assert done.wait(WAIT_SECONDS)
    return names


def test_short_work_is_done_by_the_thread_that_waits(events: Events, monkeypatch):
    """No other thread is woken for it."""
    monkeypatch.setattr("nixsnap.serving.threads._PATIENCE_SECONDS", 1.0)  # "short", on a busy machine
    time.sleep(0.02)  # until the watch has begun to use it
    assert set(ran(events, 20)) == {"test-1"}


def test_long_work_is_taken_over(events: Events):
    """While one thread is held up, another waits in its place; never do two."""
    gate, begun = threading.Event(), threading.Event()
    events.queue.put(lambda: (begun.set(), gate.wait(WAIT_SECONDS)))
    assert begun.wait(WAIT_SECONDS)
    assert "test-1" not in set(ran(events, 5))
    gate.set()
    ran(events, 50)
    assert events.most_waiters == 1


def test_what_has_arrived_goes_to_other_threads(events: Events):
    """Works that are there at the same time run at the same time: each waits here for the others."""
    together = threading.Barrier(3)
    passed = threading.Semaphore(0)

    def work() -> None:
        together.wait(WAIT_SECONDS)
        passed.release()

    for _ in range(3):
        events.queue.put(work)
    for _ in range(3):
        assert passed.acquire(timeout=WAIT_SECONDS)


def test_no_more_threads_than_the_limit(events: Events):
    """What comes when all are busy waits, and is done when one is free."""
    gate = threading.Event()
    begun, done = threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        begun.release()
        gate.wait(WAIT_SECONDS)
        done.release()

    for _ in range(10):
        events.queue.put(work)
        time.sleep(0.02)  # apart from each other, so that each has to be taken over
    for _ in range(4):
        assert begun.acquire(timeout=WAIT_SECONDS)
    assert not begun.acquire(timeout=0.1)
    gate.set()
    for _ in range(10):
        assert done.acquire(timeout=WAIT_SECONDS)


def test_system_without_more_threads(events: Events, monkeypatch, caplog):
    """Where none can be started, work waits for those that there are."""
    ran(events, 1)

    def refuse(*_args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    gate, done = threading.Event(), threading.Semaphore(0)
    begun = threading.Event()
    events.queue.put(lambda: (begun.set(), gate.wait(WAIT_SECONDS)))
    assert begun.wait(WAIT_SECONDS)
    time.sleep(0.05)  # long enough for the watch to try
    for _ in range(5):
        events.queue.put(done.release)
    gate.set()
    for _ in range(5):
        assert done.acquire(timeout=WAIT_SECONDS)
    assert "can't start new thread" in caplog.text


def test_watch_wakes_up_after_a_rest(events: Events, monkeypatch):
    """After a time without work the watch rests; long work is taken over all the same."""
    monkeypatch.setattr("nixsnap.serving.threads._IDLE_ROUNDS", 2)
    deadline = time.monotonic() + WAIT_SECONDS
    while not events.crew._watch_rests and time.monotonic() < deadline:
        time.sleep(0.01)
    assert events.crew._watch_rests
    test_long_work_is_taken_over(events)


def test_end():
    """All threads end when there are no more events."""
    before = set(threading.enumerate())
    events = Events(limit=4)
    events.crew.start()
    test_what_has_arrived_goes_to_other_threads(events)
    events.queue.put(Events.END)
    deadline = time.monotonic() + WAIT_SECONDS
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
