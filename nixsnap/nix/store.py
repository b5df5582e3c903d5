"""The store as nixsnap asks it: one interface, whether a daemon answers or a program is run for each question."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from nixsnap.nix.caller import Caller
from nixsnap.nix.progress import ProgressSink
from nixsnap.nix.storepath import StorePath


class Questions(Protocol):
    """What the store can be asked.

    Every method may raise `UnavailableError`: Nix does not answer, or the talk was ended from elsewhere.
    """

    def protect(self, paths: Iterable[StorePath]) -> None:
        """Keep store paths from the garbage collector while the session lasts, whether they are present yet or not.

        Where this is out of reach it does nothing; so make roots first and then ask what is valid.
        """
        ...

    def valid(self, paths: Collection[StorePath]) -> set[StorePath]:
        """Those of `paths` that are present, with all that they refer to."""
        ...

    def references(self, paths: Collection[StorePath]) -> Mapping[StorePath, frozenset[StorePath]]:
        """What each of `paths`, all valid, refers to; a path may refer to itself."""
        ...

    def add_roots(self, paths: Iterable[StorePath], first: Path) -> None:
        """Make a root on each of `paths`, all valid: the first is named `first`, the others `first`-2, `first`-3….

        Roots that are there already are replaced.
        """
        ...


class Session(Questions, Protocol):
    """A talk with the store, for one thread at a time."""

    def would_fetch(self, paths: Collection[StorePath]) -> Collection[StorePath]:
        """What a fetch of `paths` would take from caches: they and what they refer to, but for what is present.

        It asks caches no more than the fetch itself would, which finds the answers remembered.

        Raises:
            NixsnapError: A cache fails; so would the fetch.
        """
        ...

    def fetch(self, paths: Collection[StorePath], *, repair: bool, progress: ProgressSink) -> None:
        """Fetch store paths and what they refer to, in one call.

        Args:
            paths: What is wanted.
            repair: They are valid, but not there: fetch them all the same.
            progress: Told how it goes on.

        Raises:
            NixsnapError: Not all of it could be had; see `failures`.
        """
        ...

    def heard_seconds(self) -> float:
        """When a fetch under way was last heard of, by the monotonic clock. Any thread may ask."""
        ...


class NixStore(Protocol):
    """A way to the store.

    Attributes:
        is_worth_sharing: Whether it costs much to begin a session and little to ask another question in it.
    """

    @property
    def is_worth_sharing(self) -> bool: ...  # noqa: D102 - see above

    def initialise(self, caller: Caller) -> None:
        """Have Nix open the store, which makes the database of a new one.

        Raises:
            UnavailableError, FailedPreconditionError: As `open`.
            CancelledError: The caller went away.
        """
        ...

    def open(self, caller: Caller, *, anew: bool = False) -> contextlib.AbstractContextManager[Session]:
        """Begin a session, which ends with the block, and at once when the caller goes away.

        Args:
            caller: On whose behalf.
            anew: Whether its fetches ask caches again for what they lacked a moment ago.

        Raises:
            UnavailableError, FailedPreconditionError: Nix does not answer, or is not there.
        """
        ...


def root_names(first: Path, count: int) -> list[Path]:
    """The names that `nix-store --add-root` gives its roots."""
    return [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, count + 1))][:count]
