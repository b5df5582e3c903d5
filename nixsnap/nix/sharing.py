"""Sessions with the store that callers who want the same use by turns.

To begin a session may take the start of a process, tens of milliseconds of processor each; ten pods of one image would
start ten, all to ask the same, and while they start the fetch that all wait for does not begin. So whoever asks on a
subject joins the session that is there on it. It is closed to newcomers once somebody has left, since a daemon
remembers what it once answered: no session lives longer than the slowest of those who began together.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import attrs

from nixsnap.nix.caller import Caller
from nixsnap.nix.store import NixStore, Questions, Session
from nixsnap.nix.storepath import StorePath

T = TypeVar("T")


class SharedSessions:
    """The sessions that the callers of one process share.

    Args:
        nix: The store.
    """

    def __init__(self, nix: NixStore) -> None:
        self._nix = nix
        self._guard = threading.Lock()
        self._joinable: dict[Hashable, _SharedSession] = {}

    @contextlib.contextmanager
    def joined(self, subject: Hashable, caller: Caller) -> Iterator[Questions]:
        """Ask the store within the block, together with all who have joined on an equal `subject`.

        A session that breaks ends for all of them alike. It ends when all have left, and at once when all callers have
        gone away; one that goes away while others stay waits for an answer under way no longer than they do.

        Raises:
            CancelledError: The caller went away; with the next question.
            NixsnapError: As `NixStore.open`; here or with the first question.
        """
        if not self._nix.is_worth_sharing:
            with self._nix.open(caller) as session:
                yield session
            return
        shared = self._join(subject, caller)
        try:
            with caller.told(lambda: shared.lose(caller)):
                yield _Seat(shared, caller)
        finally:
            with self._guard:
                if self._joinable.get(subject) is shared:
                    del self._joinable[subject]
            shared.leave(caller)

    def _join(self, subject: Hashable, caller: Caller) -> _SharedSession:
        with self._guard:
            shared = self._joinable.get(subject)
            if shared is None or not shared.enter(caller):
                shared = self._joinable[subject] = _SharedSession(self._nix)
                shared.enter(caller)
            return shared


class _SharedSession:
    """One session, begun by the first question. Any thread may use it.

    Attributes:
        protected: What is protected in it.
        references: What is known of references; they never change.
    """

    def __init__(self, nix: NixStore) -> None:
        self.protected: set[StorePath] = set()
        self.references: dict[StorePath, frozenset[StorePath]] = {}
        self._nix = nix
        self._everyone = Caller()  # goes away when the last one does
        self._guard = threading.Lock()
        self._inside = 0
        self._present: set[Caller] = set()
        self._turn = threading.Lock()
        self._ending = contextlib.ExitStack()
        self._session: Session | None = None
        self._error: BaseException | None = None

    def enter(self, caller: Caller) -> bool:
        """Let one more in; not if the session has broken, or ends for want of callers."""
        with self._guard:
            if self._error is not None or (self._inside and not self._present):
                return False
            self._inside += 1
            self._present.add(caller)
            return True

    def lose(self, caller: Caller) -> None:
        """A caller has gone away, though it may be inside yet."""
        with self._guard:
            self._present.discard(caller)
            if self._present:
                return
        self._everyone.leave()

    def leave(self, caller: Caller) -> None:
        """One fewer is inside; the last one ends the session."""
        with self._guard:
            self._inside -= 1
            self._present.discard(caller)
            if self._inside:
                return
        self._ending.close()

    def ask(self, question: Callable[[Session], T]) -> T:
        """Put a question, in turn with the others inside."""
        with self._turn:
            if self._error is not None:
                raise self._error
            try:
                if self._session is None:
                    self._session = self._ending.enter_context(self._nix.open(self._everyone))
                return question(self._session)
            except BaseException as exc:
                self._break(exc)
                raise

    def _break(self, error: BaseException) -> None:
        """End the session as a `with` block does that an error leaves; raise what it makes of that error."""
        self._error = error
        try:
            with self._ending:
                raise error  # noqa: TRY301 - it is the block's own business what becomes of it
        except BaseException as exc:
            self._error = exc
            raise


@attrs.frozen
class _Seat:
    """The questions of one caller."""

    _shared: _SharedSession
    _caller: Caller

    def protect(self, paths: Iterable[StorePath]) -> None:
        """As `Questions.protect` says; once for all who share the session."""
        protected = self._shared.protected

        def protect(session: Session) -> None:
            rest = [path for path in paths if path not in protected]
            session.protect(rest)
            protected.update(rest)

        self._ask(protect)

    def valid(self, paths: Collection[StorePath]) -> set[StorePath]:
        """As `Questions.valid` says."""
        return self._ask(lambda session: session.valid(paths))

    def references(self, paths: Collection[StorePath]) -> Mapping[StorePath, frozenset[StorePath]]:
        """As `Questions.references` says; asked once for all who share the session."""
        known = self._shared.references

        def references(session: Session) -> Mapping[StorePath, frozenset[StorePath]]:
            if rest := [path for path in paths if path not in known]:
                known.update(session.references(rest))
            return {path: known[path] for path in paths}

        return self._ask(references)

    def add_roots(self, paths: Iterable[StorePath], first: Path) -> None:
        """As `Questions.add_roots` says."""
        self._ask(lambda session: session.add_roots(paths, first))

    def _ask(self, question: Callable[[Session], T]) -> T:
        self._caller.check(waiting_for="Nix")
        return self._shared.ask(question)
