"""How a fetch goes on: a bar that is kept up to date on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final, TextIO

from nixsnap.cli.terminal import INTERVAL_SECONDS, LiveLines, bar, is_live, size
from nixsnap.nix.progress import Progress, ProgressSink

_LINE_SECONDS: Final = 5.0
_NAMES_SHOWN: Final = 4
_DIGEST_LENGTH: Final = 33  # with its hyphen


@contextlib.contextmanager
def progress_on(stream: TextIO) -> Iterator[ProgressSink]:
    """Yield what shows progress on `stream`; any thread may call it."""
    if not is_live(stream):
        yield _Printed(stream)
        return
    shown = _Live(stream)
    try:
        yield shown
    finally:
        shown.close()


class FetchText:
    """How a fetch is put into words; its rate is since it began."""

    def __init__(self) -> None:
        self._began_seconds = time.monotonic()

    def summary(self, progress: Progress) -> str:
        """How far it is, and how fast."""
        paths = f"{progress.paths_done} of {progress.paths_total} paths"
        if not progress.bytes_total:
            return paths
        rate = size(progress.bytes_done / max(time.monotonic() - self._began_seconds, INTERVAL_SECONDS))
        return f"{paths}, {size(progress.bytes_done)} of {size(progress.bytes_total)}, {rate}/s"

    @staticmethod
    def current(progress: Progress) -> str:
        """What is being fetched now, without the digests."""
        names = [path.rpartition("/")[2][_DIGEST_LENGTH:] or path for path in progress.current[:_NAMES_SHOWN]]
        more = len(progress.current) - len(names)
        return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def bar_of(progress: Progress) -> str:
    """The bar: of bytes, as far as they are known, else of paths."""
    if progress.bytes_total:
        return bar(progress.bytes_done, progress.bytes_total)
    return bar(progress.paths_done, progress.paths_total)


class _Printed:
    """A line when it begins, then every few seconds, and when it is done."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._text = FetchText()
        self._next_seconds = 0.0
        self._whole = False

    def __call__(self, progress: Progress) -> None:
        """Print a line, if it is time for one."""
        whole = 0 < progress.paths_total == progress.paths_done
        with self._lock:
            if time.monotonic() < self._next_seconds and whole <= self._whole:
                return
            self._next_seconds, self._whole = time.monotonic() + _LINE_SECONDS, whole
            self._stream.write(f"fetching: {self._text.summary(progress)}\n")
            self._stream.flush()


class _Live:
    """A bar for all, and below it what is being fetched."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = LiveLines(stream)
        self._lock = threading.Lock()
        self._text = FetchText()
        self._drawn_seconds = 0.0

    def __call__(self, progress: Progress) -> None:
        """Draw, unless that was done a moment ago."""
        with self._lock:
            if time.monotonic() - self._drawn_seconds < INTERVAL_SECONDS:
                return
            self._drawn_seconds = time.monotonic()
            current = self._text.current(progress)
            lines = [f"fetching {bar_of(progress)} {self._text.summary(progress)}"]
            self._lines.show([*lines, f"  {current}"] if current else lines)

    def close(self) -> None:
        """Take the lines away; nothing is drawn afterwards."""
        with self._lock:
            self._drawn_seconds = float("inf")
            self._lines.show([])
