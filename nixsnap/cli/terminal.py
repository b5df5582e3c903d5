"""Lines at the bottom of a terminal that are kept up to date, and how amounts are written there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Final, TextIO

INTERVAL_SECONDS: Final = 0.1
"""How often it is worth to draw."""

_BAR_WIDTH: Final = 30
_KIB: Final = 1024


def is_live(stream: TextIO) -> bool:
    """Whether lines on the stream can be written over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class LiveLines:
    """Lines that replace each other, below those that stay.

    Args:
        stream: A stream of which `is_live` says so.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = 0

    def show(self, lines: Sequence[str], *, above: str = "") -> None:
        """Replace the lines by others, perhaps none.

        Args:
            lines: What to show; each is cut to the terminal's width.
            above: A line to leave above them for good.
        """
        width = shutil.get_terminal_size().columns - 1
        back = f"\x1b[{self._shown}F" if self._shown else ""
        written = [line[:width] for line in ([above, *lines] if above else lines)]
        self._stream.write(f"{back}\x1b[J" + "".join(f"{line}\n" for line in written))
        self._stream.flush()
        self._shown = len(lines)


def bar(done: int, total: int) -> str:
    """A bar of fixed width, full where there is nothing to do."""
    filled = min(_BAR_WIDTH * done // total, _BAR_WIDTH) if total else _BAR_WIDTH
    return f"[{'#' * filled:<{_BAR_WIDTH}}]"


def size(size_bytes: float) -> str:
    """A number of bytes, for people."""
    if size_bytes < _KIB:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB"):
        size_bytes /= _KIB
        if size_bytes < _KIB:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / _KIB:.1f} GiB"
