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
