"""Locks by name, so that calls on one key take turns and calls on different keys do not meet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Lock:
    """A lock, and how many hold it or wait for it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class NamedLocks:
    """A lock for each name that somebody holds or waits for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, _Lock] = {}

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock of `name`."""
        with self._guard:
            entry = self._locks.setdefault(name, _Lock())
            entry.users += 1
        try:
            with entry.lock:
                yield
        finally:
            with self._guard:
                entry.users -= 1
                if not entry.users:
                    del self._locks[name]
