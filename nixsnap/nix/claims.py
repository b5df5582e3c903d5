"""Who fetches which store path: of two calls of Nix that need the same one, the later waits for the earlier.

Nix locks a path when it begins to write it. One that fetches in parallel has asked the cache for the path's content by
then; when it gets the lock, and sees that the path is there, it reads the content all the same, to the end, and throws
it away (libstore/local-store.cc, `addToStore`; from 2.19 on, seen with 2.26). So whoever is about to call Nix claims
what that call will fetch.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator

from nixsnap.nix.caller import Caller
from nixsnap.nix.failures import name_all
from nixsnap.nix.storepath import StorePath

_FIRST_LOOK_SECONDS = 0.05
_LONGEST_LOOK_SECONDS = 1.0

Valid = Callable[[Collection[StorePath]], set[StorePath]]


class Claims:
    """The claims of fetches under way, in the order in which they were made."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._claims: list[Claim] = []

    @contextlib.contextmanager
    def made(self, paths: Collection[StorePath]) -> Iterator[Claim]:
        """Claim `paths` for the block, come what may of other claims; see `Claim.await_earlier`."""
        with self._changed:
            claim = Claim(frozenset(paths), self._changed, self._claims)
            self._claims.append(claim)
        try:
            yield claim
        finally:
            with self._changed:
                self._claims.remove(claim)
                self._changed.notify_all()


class Claim:
    """What one fetch is for. It waits for none that was made after it, so no two wait for each other.

    Attributes:
        paths: What it will fetch.
    """

    def __init__(
        self, paths: frozenset[StorePath], changed: threading.Condition, claims: list[Claim]
    ) -> None:
        self.paths = paths
        self._changed = changed
        self._claims = claims
        self._earlier = [claim for claim in claims if not claim.paths.isdisjoint(paths)]

    def await_earlier(self, valid: Valid, caller: Caller) -> None:
        """Wait until all that earlier claims have in common with this one is there, or they have ended.

        Args:
            valid: Tells which paths are there; asked now and then.
            caller: Who waits.

        Raises:
            CancelledError: The caller went away.
        """
        present: set[StorePath] = set()
        look_seconds = _FIRST_LOOK_SECONDS
        with caller.told(self._wake):
            while True:
                with self._changed:
                    shared = self._shared() - present
                    if not shared:
                        return
                    caller.check(waiting_for=name_all(sorted(shared)))
                    self._changed.wait(look_seconds)
                present |= valid(shared)
                look_seconds = min(2 * look_seconds, _LONGEST_LOOK_SECONDS)

    def _shared(self) -> frozenset[StorePath]:
        under_way = (claim.paths for claim in self._earlier if claim in self._claims)
        return self.paths.intersection(frozenset().union(*under_way))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
