"""How much one user, and all together, can ask of the door."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import attrs

from nixsnap.errors import ResourceExhaustedError

_FORGET_ABOVE: Final = 1024
"""Users remembered; past it those who have their full allowance back are forgotten, which changes nothing for them."""


@attrs.define
class _Allowance:
    left: float
    at: float


@attrs.frozen(kw_only=True)
class Limits:
    """The numbers.

    Attributes:
        connections: Connections at once.
        per_user: Connections of one user at once, so that he does not take them all.
        burst: What a user may ask for in a row. Each grant that he keeps costs the kernel a mount.
        refill_seconds: The time after which he may ask once more.
    """

    connections: int = 64
    per_user: int = 8
    burst: int = 30
    refill_seconds: float = 2.0


class Gate:
    """Counts connections; may be used by many threads."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._inside: Counter[int] = Counter()
        self._allowances: dict[int, _Allowance] = {}

    @property
    def connections(self) -> int:
        """How many are inside."""
        with self._lock:
            return self._inside.total()

    def enter(self, uid: int) -> None:
        """Let a connection of a user in; it must `leave`.

        Raises:
            ResourceExhaustedError: There are too many; this one is not in.
        """
        with self._lock:
            if self._inside[uid] >= self._limits.per_user:
                raise ResourceExhaustedError(
                    f"user {uid} has {self._inside[uid]} connections, which is all he may"
                )
            if self._inside.total() >= self._limits.connections:
                raise ResourceExhaustedError(
                    f"there are {self._inside.total()} connections, which is all there may be"
                )
            self._inside[uid] += 1

    def leave(self, uid: int) -> None:
        """Let a connection of a user go."""
        with self._lock:
            self._inside[uid] -= 1
            if not self._inside[uid]:
                del self._inside[uid]

    def spend(self, uid: int) -> None:
        """Take one from the allowance of a user, who has an account: else there could be any number of them.

        Raises:
            ResourceExhaustedError: There is none left for now.
        """
        with self._lock:
            now = self._clock()
            allowance = self._allowances.get(uid)
            if allowance is None:
                if len(self._allowances) >= _FORGET_ABOVE:
                    self._forget(now)
                allowance = self._allowances[uid] = _Allowance(self._limits.burst, now)
            allowance.left, allowance.at = self._refilled(allowance, now), now
            if allowance.left < 1:
                raise ResourceExhaustedError(
                    f"user {uid} asks more often than every {self._limits.refill_seconds:g} seconds"
                )
            allowance.left -= 1

    def _refilled(self, allowance: _Allowance, now: float) -> float:
        return min(self._limits.burst, allowance.left + (now - allowance.at) / self._limits.refill_seconds)

    def _forget(self, now: float) -> None:
        for uid, allowance in list(self._allowances.items()):
            if self._refilled(allowance, now) >= self._limits.burst:
                del self._allowances[uid]
