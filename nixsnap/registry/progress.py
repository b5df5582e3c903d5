"""How a push goes on, for whoever wants to hear of it."""

from __future__ import annotations

import enum
from typing import Protocol


class Outcome(enum.Enum):
    """How a blob came to be where it should be."""

    PUSHED = "pushed"
    MOUNTED = "mounted"
    THERE = "already there"


class Progress(Protocol):
    """Hears how a push goes on, in several threads at once."""

    def pushing(self, blobs: int, size_bytes: int) -> None:
        """So many blobs, of so many bytes together, will be sent."""

    def reached(self, digest: str, offset_bytes: int, size_bytes: int) -> None:
        """A blob is sent up to an offset, which goes back when some of it is lost."""

    def finished(self, digest: str, size_bytes: int, outcome: Outcome) -> None:
        """The registry has a blob."""

    def retrying(self, reason: str) -> None:
        """Something is tried again."""


class Silence:
    """Progress that nobody hears of."""

    def pushing(self, blobs: int, size_bytes: int) -> None:
        """Say nothing."""

    def reached(self, digest: str, offset_bytes: int, size_bytes: int) -> None:
        """Say nothing."""

    def finished(self, digest: str, size_bytes: int, outcome: Outcome) -> None:
        """Say nothing."""

    def retrying(self, reason: str) -> None:
        """Say nothing."""


SILENCE = Silence()
