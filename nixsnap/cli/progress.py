"""How a load goes on, as one line on a terminal that it keeps up to date; nowhere else is anything written."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

from nixsnap.cli.fetchprogress import FetchText, bar_of
from nixsnap.cli.terminal import INTERVAL_SECONDS, is_live
from nixsnap.containerd.load import Progress, Silence
from nixsnap.nix.progress import Progress as Fetch

_ERASE_LINE = "\r\x1b[K"
_MIB = 1 << 20


class LoadProgress(Progress, Protocol):
    """Hears how a load goes on, and the fetches that it waits for."""

    def fetching(self, fetch: Fetch) -> None:
        """The fetches have come so far."""


class _Silence(Silence):
    def fetching(self, fetch: Fetch) -> None:
        """Say nothing."""


@contextlib.contextmanager
def progress_on(stream: TextIO) -> Iterator[LoadProgress]:
    """Yield what shows progress on `stream`, and erase that in the end."""
    if not is_live(stream):
        yield _Silence()
        return
    line = _Line(stream)
    try:
        yield line
    finally:
        line.erase()


class _Line:
    """The line. Counting rewrites it every tenth of a second at most."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._written_seconds = time.monotonic()
        self._done = self._total = 0
        self._fetch_text: FetchText | None = None

    def storing(self, size_bytes: int) -> None:
        """Begin to count bytes."""
        self._done, self._total = 0, size_bytes

    def stored(self, size_bytes: int) -> None:
        """Count bytes."""
        self._done += size_bytes
        if self._is_due():
            self._write(f"storing: {self._done / _MIB:.1f} of {self._total / _MIB:.1f} MiB")

    def unpacking(self, layers: int) -> None:
        """Begin to count layers, at once: the first may take minutes to fetch."""
        self._done, self._total = 0, layers
        self._write(self._layers())

    def unpacked(self) -> None:
        """Count a layer."""
        self._done += 1
        if self._is_due():
            self._write(self._layers())

    def fetching(self, fetch: Fetch) -> None:
        """Show how the fetches go on for which a layer waits."""
        if self._fetch_text is None or not fetch.paths_total:
            self._fetch_text = FetchText() if fetch.paths_total else None
        if fetch.paths_total and self._is_due():
            current = FetchText.current(fetch)
            text = f"{self._layers()}; fetching {bar_of(fetch)} {(self._fetch_text or FetchText()).summary(fetch)}"
            self._write(f"{text}: {current}" if current else text)

    def erase(self) -> None:
        """Leave the line empty."""
        self._write("")

    def _layers(self) -> str:
        return f"unpacking: {self._done} of {self._total} layers"

    def _is_due(self) -> bool:
        return time.monotonic() - self._written_seconds >= INTERVAL_SECONDS

    def _write(self, text: str) -> None:
        self._written_seconds = time.monotonic()
        self._stream.write(_ERASE_LINE + text[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()
