"""How far a fetch has come, as a value, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs


@attrs.frozen(kw_only=True)
class Progress:
    """One moment of a fetch. What is not known yet is 0; totals may grow while Nix finds out what is needed.

    Attributes:
        paths_done: Store paths that were missing and are present now.
        paths_total: Store paths that were missing.
        bytes_done: Of what is copied, uncompressed.
        bytes_total: Of all that has to be copied, uncompressed, as far as caches have said.
        current: What is being fetched or built now, the longest at it first.
    """

    paths_done: int = 0
    paths_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    current: tuple[str, ...] = ()


ProgressSink: TypeAlias = Callable[[Progress], None]
"""Told of each moment worth showing, a few times a second, on any thread; it must neither block nor raise."""


def ignore(_progress: Progress) -> None:
    """The sink of those who do not watch."""


class ProgressSum:
    """Adds up several fetches for one sink.

    Args:
        sink: Told of the sum.
    """

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink
        self._parts: dict[int, Progress] = {}

    def part(self, fetch: object) -> ProgressSink:
        """The sink of one of the fetches."""
        if self._sink is ignore:
            return ignore
        return lambda progress: self._take(id(fetch), progress)

    def _take(self, key: int, progress: Progress) -> None:
        self._parts[key] = progress
        parts = list(self._parts.values())  # one step, whatever other threads do
        self._sink(
            Progress(
                paths_done=sum(part.paths_done for part in parts),
                paths_total=sum(part.paths_total for part in parts),
                bytes_done=sum(part.bytes_done for part in parts),
                bytes_total=sum(part.bytes_total for part in parts),
                current=tuple(name for part in parts for name in part.current),
            )
        )
