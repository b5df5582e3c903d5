"""Tests of `nixsnap.registry.parallel`."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from nixsnap.registry.parallel import in_parallel
from nixsnap.registry.retry import AbandonedError, Clock


def test_results_in_order():
    """Of any number of items."""
    assert in_parallel(lambda x: x * x, range(100), threads=7, clock=Clock()) == [x * x for x in range(100)]
    assert in_parallel(lambda x: x, [], threads=7, clock=Clock()) == []


def test_so_many_at_a_time():
    """And no more."""
    barrier = threading.Barrier(3)
    working = []

    def work(_item: int) -> int:
        working.append(1)
        barrier.wait(10)  # breaks unless three are here at a time
        count = len(working)
        barrier.wait(10)
        return count

    assert max(in_parallel(work, range(9), threads=3, clock=Clock())) <= 9
    assert barrier.broken is False


def test_first_failure_ends_all():
    """The others are told, and what was not begun never is."""
    clock = Clock()
    began = []

    def work(item: int) -> None:
        began.append(item)
        if item == 1:
            raise ValueError("this one")
        clock.pause(60)

    with pytest.raises(ValueError, match="this one"):
        in_parallel(work, range(10), threads=2, clock=clock)
    assert set(began) == {0, 1}


def test_stopped_by_someone_else():
    """Is no success."""
    clock = Clock()
    clock.stop()
    with pytest.raises(AbandonedError):
        in_parallel(lambda _item: clock.check(), [1], threads=1, clock=clock)


def test_interrupted():
    """The threads get to know, and some time to tidy up."""
    clock = Clock()
    tidied = threading.Event()

    def work(_item: int) -> None:
        try:
            clock.pause(60)
        finally:
            time.sleep(0.1)
            tidied.set()

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_parallel(work, [1], threads=1, clock=clock)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert tidied.is_set()
