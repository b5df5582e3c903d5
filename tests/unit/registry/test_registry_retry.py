"""Tests of `nixsnap.registry.retry`."""

from __future__ import annotations

import email.utils
import threading
import time

import pytest
import urllib3

from nixsnap.registry.retry import ATTEMPTS, AbandonedError, Attempts, Clock, is_transient, retry_after
from nixsnap.registry.transport import Answer


def answer(status: int = 503, *, retry: str = "") -> Answer:
    headers = urllib3.HTTPHeaderDict({"Retry-After": retry} if retry else {})
    return Answer(method="GET", url="https://r.invalid/", status=status, headers=headers, body=b"")


class Recording(Clock):
    """A clock that only writes down how long it should have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def test_pauses_double():
    """With some noise, up to half a minute."""
    clock = Recording()
    attempts = Attempts(clock)
    for _ in range(12):
        attempts.are_over()
        attempts.pause()
    for pause, expected in zip(clock.pauses, [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30], strict=True):
        assert 0.75 * expected <= pause <= 1.25 * expected
    assert len(set(clock.pauses)) == 12


def test_as_long_as_the_registry_asks():
    """And no less."""
    clock = Recording()
    Attempts(clock).pause(answer(retry="7"))
    assert clock.pauses == [7]


def test_attempts():
    """End after so many failures in a row."""
    attempts = Attempts(Recording())
    counted = [attempts.are_over() for _ in range(ATTEMPTS)]
    assert counted == [False] * (ATTEMPTS - 1) + [True]
    attempts.begin_anew()
    assert not attempts.are_over()


def test_stop_ends_a_pause():
    """At once, and every later one."""
    clock = Clock()
    threading.Timer(0.05, clock.stop).start()
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(AbandonedError):
            clock.pause(60)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        ("12", 12),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 +0000", None),
        (" 3 ", 3),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("²", None),
        ("9" * 30, 1e30),
    ],
)
def test_retry_after(value, expected):
    """Seconds, or nothing."""
    assert retry_after(answer(retry=value)) == (None if expected is None else pytest.approx(expected))


def test_retry_after_date():
    """As seconds from now; what is past is now."""
    assert 50 < retry_after(answer(retry=email.utils.formatdate(time.time() + 60, usegmt=True))) <= 60
    assert retry_after(answer(retry=email.utils.formatdate(0, usegmt=True))) == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(500), True),
        (answer(502), True),
        (answer(503), True),
        (answer(504), True),
        (answer(599), True),
        (answer(429), True),
        (answer(408), True),
        (answer(429, retry="300"), True),
        (answer(429, retry="301"), False),
        (answer(503, retry="9" * 12), False),
        (answer(501), False),
        (answer(505), False),
        (answer(507), False),
        (answer(404), False),
        (answer(200), False),
    ],
)
def test_is_transient(given, expected):
    """What may pass, within a time that one would wait."""
    assert is_transient(given) is expected
