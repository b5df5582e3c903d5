"""Nothing is realised while Nix's collector holds its lock, and it cannot take it meanwhile."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from nixsnap.errors import CancelledError
from nixsnap.nix.caller import Caller
from nixsnap.nix.collector import no_collector


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "gc.lock"


@pytest.fixture
def collector(lock):
    """A descriptor that holds the lock as a collector does."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield fd
    os.close(fd)


def can_collect(lock):
    """Whether a collector could begin."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_no_collector_begins_within(lock):
    """Several may be within at once; after the last one it may begin."""
    with no_collector(lock, Caller()):
        with no_collector(lock, Caller()):
            assert not can_collect(lock)
        assert not can_collect(lock)
    assert can_collect(lock)


def test_a_collector_that_runs_is_waited_for(lock, collector):
    """The block begins when it has ended."""
    events = []

    def end():
        events.append("collected")
        fcntl.flock(collector, fcntl.LOCK_UN)

    timer = threading.Timer(0.05, end)
    timer.start()
    with no_collector(lock, Caller()):
        events.append("within")
    timer.join()
    assert events == ["collected", "within"]


@pytest.mark.usefixtures("collector")
def test_a_caller_that_goes_away_waits_no_longer(lock):
    """However long the collector runs."""
    caller = Caller()
    threading.Timer(0.05, caller.leave).start()
    with pytest.raises(CancelledError, match="garbage collector"), no_collector(lock, caller):
        raise AssertionError


def test_a_lock_out_of_reach(lock):
    """Where there is no state directory, or none of ours, things go on without."""
    with no_collector(lock / "no" / "gc.lock", Caller()):
        pass
    lock.symlink_to("elsewhere")
    with no_collector(lock, Caller()):
        assert not (lock.parent / "elsewhere").exists()
