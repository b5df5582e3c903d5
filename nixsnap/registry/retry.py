"""When to try again, and how long to wait before."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from http import HTTPStatus
from typing import Final

from nixsnap.registry.failures import says_full
from nixsnap.registry.transport import Answer

ATTEMPTS: Final = 6
"""How often one thing is tried, the first time included: some fifteen seconds in all."""

_FIRST_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 30.0
_ASKED_SECONDS_MAX: Final = 300.0
_NEVER: Final = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED})


class AbandonedError(Exception):
    """The push has failed elsewhere, or was interrupted; this part of it just ends."""


class Clock:
    """Waits, and ends all waiting at once when the push ends.

    Args:
        unit_seconds: The first pause; tests shorten it.
    """

    def __init__(self, *, unit_seconds: float = _FIRST_SECONDS) -> None:
        self.unit_seconds = unit_seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let whoever waits or looks leave."""
        self._stopped.set()

    def check(self) -> None:
        """Raise AbandonedError after `stop`."""
        if self._stopped.is_set():
            raise AbandonedError

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            AbandonedError: `stop` was called, before or meanwhile.
        """
        self._stopped.wait(seconds)
        self.check()


class Attempts:
    """Counts how often one thing has failed, and waits longer each time.

    Args:
        clock: What to wait by.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0

    def are_over(self) -> bool:
        """Count a failure; whether it was the last that is allowed."""
        self._failures += 1
        return self._failures >= ATTEMPTS

    def begin_anew(self) -> None:
        """Forget the failures, because something was achieved since."""
        self._failures = 0

    def pause(self, answer: Answer | None = None) -> None:
        """Wait as long as the registry asks in its answer, or else twice as long each time.

        Raises:
            AbandonedError: The clock was stopped.
        """
        seconds = retry_after(answer) if answer is not None else None
        if seconds is None:
            seconds = min(_LONGEST_SECONDS, self._clock.unit_seconds * 2 ** max(0, self._failures - 1))
            # Those who failed together should not come back together.
            seconds *= random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        self._clock.pause(seconds)


def is_transient(answer: Answer) -> bool:
    """Whether the same request may well succeed later, and not too late."""
    if (retry_after(answer) or 0) > _ASKED_SECONDS_MAX or says_full(answer):
        return False
    if answer.status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}:
        return True
    return answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR and answer.status not in _NEVER


def retry_after(answer: Answer) -> float | None:
    """The seconds that a registry asks to wait for, which it gives as such or as a date; None where it does not."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
