"""The fetches that go on now, for whoever wants to watch them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from nixsnap.nix.progress import Progress, ProgressSink


class Fetches:
    """What each fetch said last, by the key of the snapshot it is for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._latest: dict[str, Progress] = {}
        self._closed = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether there is nothing more to watch."""
        return self._closed.is_set()

    def close(self) -> None:
        """Have all who watch go away: the daemon is about to end."""
        self._closed.set()

    @contextmanager
    def under_way(self, key: str) -> Iterator[ProgressSink]:
        """Keep what the yielded sink hears, as long as the block lasts."""
        ended = False

        def hear(progress: Progress) -> None:
            with self._guard:
                if not ended:  # a fetch that goes on for others may be about to tell us, too
                    self._latest[key] = progress

        try:
            yield hear
        finally:
            with self._guard:
                ended = True
                self._latest.pop(key, None)

    def of(self, suffixes: Collection[str]) -> Progress:
        """Where the fetches stand whose keys end with any of `suffixes`, added up."""
        endings = tuple(suffixes)
        with self._guard:
            found = [progress for key, progress in self._latest.items() if key.endswith(endings)]
        return Progress(
            paths_done=sum(progress.paths_done for progress in found),
            paths_total=sum(progress.paths_total for progress in found),
            bytes_done=sum(progress.bytes_done for progress in found),
            bytes_total=sum(progress.bytes_total for progress in found),
            current=tuple(name for progress in found for name in progress.current),
        )
