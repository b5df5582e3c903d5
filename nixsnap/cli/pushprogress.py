"""How a push goes on: bars that are kept up to date on a terminal, a line for each event elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from nixsnap.cli.terminal import INTERVAL_SECONDS, LiveLines, bar, is_live, size
from nixsnap.registry.progress import Outcome, Progress

_DIGEST_SHOWN = len("sha256:") + 12


@contextlib.contextmanager
def progress_on(stream: TextIO) -> Iterator[Progress]:
    """Yield what shows progress on `stream`."""
    if not is_live(stream):
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
            self._print(f"pushing {blobs} blob{'s' * (blobs > 1)}, {size(size_bytes)}")

    def reached(self, digest: str, offset_bytes: int, size_bytes: int) -> None:
        """Say nothing: a log is no place for it."""

    def finished(self, digest: str, size_bytes: int, outcome: Outcome) -> None:
        """Say it."""
        self._print(f"{digest}: {outcome.value} ({size(size_bytes)})")

    def retrying(self, reason: str) -> None:
        """Say it."""
        self._print(f"{reason}; trying again")

    def _print(self, text: str) -> None:
        self._stream.write(f"{text}\n")  # in one piece, since several threads write
        self._stream.flush()


class _Bars:
    """A bar for each blob under way and one for all, below what is worth to stay on the screen."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = LiveLines(stream)
        self._lock = threading.Lock()
        self._under_way: dict[str, tuple[int, int]] = {}
        self._blobs = self._blobs_done = self._bytes = self._bytes_done = 0
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
            if time.monotonic() - self._drawn_seconds >= INTERVAL_SECONDS:
                self._draw()

    def finished(self, digest: str, size_bytes: int, outcome: Outcome) -> None:
        """Turn a blob's bar into a line that stays."""
        with self._lock:
            self._under_way.pop(digest, None)
            if outcome is not Outcome.THERE:
                self._blobs_done += 1
                self._bytes_done += size_bytes
            self._draw(f"{digest[:_DIGEST_SHOWN]}  {outcome.value} ({size(size_bytes)})")

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
        bars = [
            f"{digest[:_DIGEST_SHOWN]}  {bar(done, total)}  {size(done)} of {size(total)}"
            for digest, (done, total) in self._under_way.items()
        ]
        if self._blobs:
            bars.append(self._total())
        self._lines.show(bars, above=line)

    def _total(self) -> str:
        done = self._bytes_done + sum(reached for reached, _ in self._under_way.values())
        seconds = max(time.monotonic() - self._began_seconds, INTERVAL_SECONDS)
        counted = f"{self._blobs_done} of {self._blobs} blobs"
        label = f"{counted:<{_DIGEST_SHOWN}}"
        return f"{label}  {bar(done, self._bytes)}  {size(done)} of {size(self._bytes)}, {size(done / seconds)}/s"
