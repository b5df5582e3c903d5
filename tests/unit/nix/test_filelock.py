"""Waiting for a lock on a file."""

from __future__ import annotations

import fcntl
import os
import threading

import pytest

from nixsnap.errors import CancelledError
from nixsnap.nix.caller import Caller
from nixsnap.nix.filelock import acquire


@pytest.fixture
def held(tmp_path):
    """A file that is locked."""
    path = tmp_path / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield path
    os.close(fd)


def test_who_waits_long_looks_less_and_less_often(held, monkeypatch):
    """Hundreds may wait for minutes, and must not take up a processor meanwhile."""
    waits = []
    caller = Caller()

    def wait(_event, seconds):
        waits.append(seconds)
        if len(waits) == 12:
            caller.leave()

    fd = os.open(held, os.O_RDONLY)
    monkeypatch.setattr(threading.Event, "wait", wait)
    try:
        with pytest.raises(CancelledError, match="while it waited for the end"):
            acquire(fd, fcntl.LOCK_SH, caller, waiting_for="the end")
    finally:
        os.close(fd)
    assert waits == sorted(waits)
    assert waits[0] < 0.1 < waits[-1] < 1


def test_a_caller_that_goes_away_is_not_kept(held):
    """However rarely it looks by then."""
    caller = Caller()
    threading.Timer(0.5, caller.leave).start()
    fd = os.open(held, os.O_RDONLY)
    try:
        with pytest.raises(CancelledError):
            acquire(fd, fcntl.LOCK_SH, caller, waiting_for="the end")
    finally:
        os.close(fd)
