"""Closures of an exact number of store paths, deleted again when the run is over."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from lab import Closure, closure_info, nix_closure
from lab.nix import delete_closure


@attrs.define(eq=False)
class Closures:
    """Makes each closure once. They share no store path but busybox: not among each other, nor with another run."""

    _salt: str = attrs.field(factory=lambda: f"{os.getpid()} {time.time_ns()}", init=False)
    _made: dict[int, Closure] = attrs.field(factory=dict, init=False)

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator[Closures]:
        """Closures that are gone from the store when the block ends."""
        closures = cls()
        try:
            yield closures
        finally:
            closures._delete()

    def of(self, count: int) -> Closure:
        """The closure of exactly `count` store paths: 1 (busybox alone), or at least 3."""
        if count not in self._made:
            self._made[count] = self._application(count) if count > 1 else self._busybox()
        return self._made[count]

    def _application(self, count: int) -> Closure:
        # Beside the dependencies there are busybox and the application itself.
        closure = nix_closure(count - 2, salt=f"{count} {self._salt}", name=f"bench-{count}")
        if len(closure.paths) != count:
            raise AssertionError(f"a closure of {len(closure.paths)} store paths instead of {count}")
        return closure

    def _busybox(self) -> Closure:
        (busybox,) = (path for path in self.of(3).paths if path.endswith("-busybox-static"))
        return Closure(top=busybox, paths=(busybox,), info=closure_info(busybox))

    def _delete(self) -> None:
        for count, closure in self._made.items():
            if count > 1:  # busybox belongs to every run
                delete_closure(closure)
