"""Those for whom work is done, and who may go away before it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from nixsnap.errors import CancelledError


class Caller:
    """One caller: it waits until it goes away, once and for good. Any thread may use it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._gone = False
        self._callbacks: list[Callable[[], None]] = []

    def leave(self) -> None:
        """Note that the caller has gone, and tell those who want to know; of no effect the second time."""
        with self._guard:
            self._gone = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @property
    def gone(self) -> bool:
        """Whether it has gone."""
        return self._gone

    def check(self, *, waiting_for: str) -> None:
        """Make sure that the caller is still there.

        Raises:
            CancelledError: It has gone.
        """
        if self._gone:
            raise CancelledError(f"the caller went away while it waited for {waiting_for}")

    @contextlib.contextmanager
    def told(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` when the caller goes away within the block; at once, if it has gone before.

        The callback may run on any thread; it runs once.
        """
        with self._guard:
            gone = self._gone
            if not gone:
                self._callbacks.append(callback)
        if gone:
            callback()
        try:
            yield
        finally:
            with self._guard, contextlib.suppress(ValueError):  # it was called
                self._callbacks.remove(callback)
