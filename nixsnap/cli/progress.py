"""How a load goes on, as one line on a terminal that it keeps up to date; nowhere else is anything written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TextIO

from nixsnap.containerd.load import SILENCE, Progress

_ERASE_LINE = "\r\x1b[K"
_INTERVAL_SECONDS = 0.1
_MIB = 1 << 20


@contextlib.contextmanager
def progress_on(stream: TextIO) -> Iterator[Progress]:
    """Yield what shows progress on `stream`, and erase that in the end."""
    if not stream.isatty():
        yield SILENCE
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

    def erase(self) -> None:
        """Leave the line empty."""
        self._write("")

    def _layers(self) -> str:
        return f"unpacking: {self._done} of {self._total} layers"

    def _is_due(self) -> bool:
        return time.monotonic() - self._written_seconds >= _INTERVAL_SECONDS

    def _write(self, text: str) -> None:
        self._written_seconds = time.monotonic()
        self._stream.write(_ERASE_LINE + text)
        self._stream.flush()
