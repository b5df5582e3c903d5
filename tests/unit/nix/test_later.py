"""What is to be done after a while."""

from __future__ import annotations

import queue
import threading

import pytest

from nixsnap.nix import later as module
from nixsnap.nix.later import later

WAIT_SECONDS = 20


@pytest.fixture
def done():
    return queue.Queue()


def test_in_the_order_in_which_it_is_due(done):
    """Not in that in which it was asked for; and what is called off is not done."""
    later(0.3, lambda: done.put("last"))
    later(0.1, lambda: done.put("called off")).call_off()
    later(0.0, lambda: done.put("first"))
    later(0.2, lambda: done.put("second"))
    assert [done.get(timeout=WAIT_SECONDS) for _ in range(3)] == ["first", "second", "last"]


def test_what_fails_ends_nothing_else(done, caplog):
    """The log says so, and the rest is done."""
    later(0.0, lambda: 1 // 0)
    later(0.01, lambda: done.put("done"))
    assert done.get(timeout=WAIT_SECONDS) == "done"
    assert "ZeroDivisionError" in caplog.text


def test_any_number_takes_one_thread():
    """Each fetch that is given up is one."""
    before = threading.active_count()
    appointments = [later(1000, lambda: None) for _ in range(500)]
    assert threading.active_count() <= before + 1
    for appointment in appointments:
        appointment.call_off()


def test_a_system_that_starts_no_more_threads(done, monkeypatch):
    """It is done once there is a thread."""
    agenda = module._Agenda()
    monkeypatch.setattr(module, "_agenda", agenda)

    def start(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        later(0.0, lambda: done.put("first"))
    later(0.0, lambda: done.put("second"))
    assert [done.get(timeout=WAIT_SECONDS) for _ in range(2)] == ["first", "second"]
