"""Doing something now and then."""

from __future__ import annotations

import threading

from nixsnap.periodic import periodically


def test_at_once_and_again_after_failures():
    """The first time is now; a failure is tried again soon, and success ends that."""
    answers = iter([False, False, True])
    succeeded = threading.Event()

    def action():
        well = next(answers)
        if well:
            succeeded.set()
        return well

    with periodically(action, name="test", interval_seconds=3600, retry_seconds=0.001):
        assert succeeded.wait(60)
    assert list(answers) == []


def test_after_success_the_interval_is_waited_for():
    """A short interval brings it again and again."""
    calls = threading.Semaphore(0)

    def action():
        calls.release()
        return True

    with periodically(action, name="test", interval_seconds=0.001, retry_seconds=3600):
        for _ in range(3):
            assert calls.acquire(timeout=60)


def test_what_is_under_way_at_the_end_is_waited_for():
    """When the block has ended nothing of it runs."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def action():
        begun.set()
        may_end.wait(60)
        ended.set()
        return True

    with periodically(action, name="test", interval_seconds=3600, retry_seconds=3600):
        assert begun.wait(60)
        threading.Timer(0.01, may_end.set).start()
    assert ended.is_set()


def test_what_nobody_foresaw_does_not_end_it(caplog):
    """The log has it, and it is tried again: no thread could be started, say."""
    answers = iter([RuntimeError("can't start new thread"), True])
    succeeded = threading.Event()

    def action():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        succeeded.set()
        return answer

    with periodically(action, name="test", interval_seconds=3600, retry_seconds=0.001):
        assert succeeded.wait(20)
    assert "can't start new thread" in caplog.text
