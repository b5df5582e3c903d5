"""How a push goes on: bars that are kept up to date on a terminal, a line for each event elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from nixsnap.registry.progress import Outcome, Progress

_INTERVAL_SECONDS = 0.1
_BAR_WIDTH = 30
_DIGEST_SHOWN = len("sha256:") + 12
_KIB = 1024


@contextlib.contextmanager
def progress_on(stream: TextIO) -> Iterator[Progress]:
    """Yield what shows progress on `stream`."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines(stream)
        return
    bars = _Bars(stream)
    try:
        yield bars
    finally:
        bars.close()


class _Lines:
    """A line for each blob that is there, and for whatever goes wrong meanwhile."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def pushing(self, blobs: int, size_bytes: int) -> None:
        """Say how much there is to do."""
        if blobs:
            self._print(f"pushing {blobs} blob{'s' * (blobs > 1)}, {_size(size_bytes)}")

    def reached(self, digest: str, offset_bytes: int, size_bytes: int) -> None:
        """Say nothing: a log is no place for it."""

    def finished(self, digest: str, size_bytes: int, outcome: Outcome) -> None:
        """Say it."""
        self._print(f"{digest}: {outcome.value} ({_size(size_bytes)})")

    def retrying(self, reason: str) -> None:
        """Say it."""
        self._print(f"{reason}; trying again")

    def _print(self, text: str) -> None:
        self._stream.write(f"{text}\n")  # in one piece, since several threads write
        self._stream.flush()


class _Bars:
    """A bar for each blob under way and one for all, below what is worth to stay on the screen."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._under_way: dict[str, tuple[int, int]] = {}
        self._blobs = self._blobs_done = self._bytes = self._bytes_done = 0
        self._lines_shown = 0
        self._began_seconds = self._drawn_seconds = time.monotonic()

    def pushing(self, blobs: int, size_bytes: int) -> None:
        """Begin to count."""
        with self._lock:
            self._began_seconds = time.monotonic()
            self._blobs, self._bytes = blobs, size_bytes

    def reached(self, digest: str, offset_bytes: int, size_bytes: int) -> None:
        """Move a blob's bar."""
        with self._lock:
            self._under_way[digest] = (offset_bytes, size_bytes)
            if time.monotonic() - self._drawn_seconds >= _INTERVAL_SECONDS:
                self._draw()

    def finished(self, digest: str, size_bytes: int, outcome: Outcome) -> None:
        """Turn a blob's bar into a line that stays."""
        with self._lock:
            self._under_way.pop(digest, None)
            if outcome is not Outcome.THERE:
                self._blobs_done += 1
                self._bytes_done += size_bytes
            self._draw(f"{digest[:_DIGEST_SHOWN]}  {outcome.value} ({_size(size_bytes)})")

    def retrying(self, reason: str) -> None:
        """Leave a line about it."""
        with self._lock:
            self._draw(f"{reason}; trying again")

    def close(self) -> None:
        """Take the bars away."""
        with self._lock:
            self._blobs = 0
            self._under_way.clear()
            self._draw()

    def _draw(self, line: str = "") -> None:
        """Write the bars where they were, below a line that stays if there is one."""
        self._drawn_seconds = time.monotonic()
        width = shutil.get_terminal_size().columns - 1
        bars = [
            f"{digest[:_DIGEST_SHOWN]}  {_bar(done, size)}  {_size(done)} of {_size(size)}"
            for digest, (done, size) in self._under_way.items()
        ]
        if self._blobs:
            bars.append(self._total())
        back = f"\x1b[{self._lines_shown}F" if self._lines_shown else ""
        lines = [each[:width] for each in ([line, *bars] if line else bars)]
        self._stream.write(f"{back}\x1b[J" + "".join(f"{each}\n" for each in lines))
        self._stream.flush()
        self._lines_shown = len(bars)

    def _total(self) -> str:
        done = self._bytes_done + sum(reached for reached, _ in self._under_way.values())
        seconds = max(time.monotonic() - self._began_seconds, _INTERVAL_SECONDS)
        counted = f"{self._blobs_done} of {self._blobs} blobs"
        label = f"{counted:<{_DIGEST_SHOWN}}"
        return f"{label}  {_bar(done, self._bytes)}  {_size(done)} of {_size(self._bytes)}, {_size(done / seconds)}/s"


def _bar(done: int, size: int) -> str:
    filled = _BAR_WIDTH * done // size if size else _BAR_WIDTH
    return f"[{'#' * filled:<{_BAR_WIDTH}}]"


def _size(size_bytes: float) -> str:
    if size_bytes < _KIB:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB"):
        size_bytes /= _KIB
        if size_bytes < _KIB:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / _KIB:.1f} GiB"
