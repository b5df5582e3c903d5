"""The realise engine: closures made present with as little of Nix as will do, and never twice for the same thing.

A session with the store lasts from the first question to the last root; what it protects, a garbage collector spares.
Callers who want the same closure share one (see `sharing`).
Fetches are flights of their own (see `flights`), each over a session of its own, so that they outlive the callers who
asked for them; those of closures that overlap take turns at what both need (see `claims`). Of a closure only those
paths get roots that nothing else in it refers to: Nix keeps the rest for them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeAlias

import attrs

from nixsnap.config import NixConfig
from nixsnap.errors import NotFoundError, UnavailableError
from nixsnap.nix.caller import Caller
from nixsnap.nix.claims import Claims
from nixsnap.nix.closureinfo import read_closure_info
from nixsnap.nix.collector import no_collector
from nixsnap.nix.failures import LostRaceError, name_all
from nixsnap.nix.firstopening import FirstOpening
from nixsnap.nix.flights import Flight, Flights, await_first
from nixsnap.nix.progress import Progress, ProgressSink, ProgressSum, ignore
from nixsnap.nix.realise import ClosureRequest, check_present, find_missing
from nixsnap.nix.sharing import SharedSessions
from nixsnap.nix.store import NixStore, Questions, Session
from nixsnap.nix.storepath import StorePath
from nixsnap.nix.watchdog import watchdog

log = logging.getLogger(__name__)

# A fetch that fails to make its path present, or is ended for want of callers just as one comes, is made again.
_ROUNDS: Final = 5
# Whoever is aboard a flight for a part of what it fetches looks now and then whether that part is there.
_FIRST_LOOK_SECONDS: Final = 0.5
_LONGEST_LOOK_SECONDS: Final = 8.0
_LOG_SECONDS: Final = 10.0


@attrs.frozen(order=True)
class _Want:
    """A store path that is to be fetched; `repair` it if Nix believes that it is there."""

    path: StorePath
    repair: bool


_Fetch: TypeAlias = "Flight[_Want, None]"


class NixRealiser:
    """Realises with Nix. All callers in one process should share one.

    Args:
        nix: The store, as Nix shows it.
        store: Where it lies on this host.
        config: The `[nix]` table.
        state: Nix's state directory.
    """

    def __init__(self, *, nix: NixStore, store: Path, config: NixConfig, state: Path) -> None:
        self._nix = nix
        self._sessions = SharedSessions(nix)
        self._store = store
        self._config = config
        self._first_opening = FirstOpening(nix=nix, state=state)
        self._collector_lock = state / "gc.lock"
        self._unattended = Caller()  # stands for those who name no caller; goes away when we close
        executor = ThreadPoolExecutor(config.max_jobs, thread_name_prefix="fetch")
        self._executor = executor
        self._claims = Claims()
        self._flights: Flights[_Want, None] = Flights(executor, grace_seconds=config.grace_seconds)

    def realise(
        self,
        request: ClosureRequest,
        *,
        gcroots: Path,
        progress: ProgressSink = ignore,
        caller: Caller | None = None,
    ) -> tuple[StorePath, ...]:
        """As `Realiser.realise` says."""
        gcroots.mkdir(mode=0o755, parents=True, exist_ok=True)
        attended, caller = caller is not None, caller or Caller()
        with contextlib.nullcontext() if attended else self._unattended.told(caller.leave):
            return self._realise(request, gcroots=gcroots, progress=progress, caller=caller)

    def _realise(
        self, request: ClosureRequest, *, gcroots: Path, progress: ProgressSink, caller: Caller
    ) -> tuple[StorePath, ...]:
        self._first_opening.ensure(caller)
        with (
            no_collector(self._collector_lock, caller),
            self._sessions.joined(request, caller) as session,
        ):
            work = _Work(self, session, caller=caller, progress=progress)
            listed: list[StorePath] = []
            named = set(request.store_paths)
            if (info := request.closure_info) is not None:
                work.hold([info], gcroots / "closure")
                listed = read_closure_info(self._store, info)
                # Who made the image made this list too, and may list what the closureInfo does not refer to, which
                # its root therefore does not keep.
                named |= set(listed) - session.references([info])[info]
            if named:
                work.hold(sorted(named), gcroots / "path-0")
            closure = tuple(sorted({*named, *listed}))
            if find_missing(self._store, closure):  # somebody deleted them without asking Nix
                work.ensure(closure)
        check_present(self._store, closure)
        return closure

    def close(self) -> None:
        """End all fetches, and all that is done for no caller; those who wait for them get an error."""
        self._unattended.leave()
        self._executor.shutdown(wait=False, cancel_futures=False)
        self._flights.end_all()

    def lacking(self, session: Questions, paths: Collection[StorePath]) -> list[_Want]:
        """What of `paths` has to be fetched."""
        valid = session.valid(paths)
        if lacking := [_Want(path, repair=False) for path in paths if path not in valid]:
            return lacking
        return [_Want(path, repair=True) for path in find_missing(self._store, paths)]

    def fetch(
        self, wants: Collection[_Want], *, caller: Caller, progress: ProgressSink, enough: Callable[[], bool]
    ) -> None:
        """Fetch what is wanted, sharing the work with everyone who fetches any of it.

        Args:
            wants: What is wanted.
            caller: Who waits for it.
            progress: Told how it goes on.
            enough: Whether all of it is there by now, though flights for more go on.

        Raises:
            CancelledError: The caller went away.
            NixsnapError: It cannot be had.
        """
        wanted = frozenset(wants)
        look_seconds = _FIRST_LOOK_SECONDS
        with self._flights.board(wanted, self._fly, sink=ProgressSum(progress).part) as flights:
            pending = set(flights)
            while pending:
                wide = any(not flight.keys <= wanted for flight in pending)
                await_first(
                    pending,
                    caller,
                    timeout_seconds=look_seconds if wide else None,
                    waiting_for=name_all([want.path for want in wants]),
                )
                landed = {flight for flight in pending if flight.future.done()}
                pending -= landed
                _raise_failures(landed, wanted)
                if wide and pending and not landed and enough():
                    return
                look_seconds = min(2 * look_seconds, _LONGEST_LOOK_SECONDS)

    def _fly(self, flight: _Fetch) -> None:
        """Make one call of Nix for all that a flight is for."""
        wants = sorted(flight.keys)
        started_seconds = time.monotonic()
        log.info("fetching %d store paths first=%s", len(wants), wants[0].path)
        call = Caller()
        with flight.caller.told(call.leave), no_collector(self._collector_lock, call):
            for attempt in range(1, _ROUNDS + 1):
                try:
                    self._call_twice(wants, call, _Logged(flight.tell))
                    break
                except LostRaceError as exc:  # that process of Nix is of no more use, but the next one is
                    if attempt == _ROUNDS:
                        raise
                    log.info("fetching again: %s", exc)
        log.info("fetched %d store paths seconds=%.1f", len(wants), time.monotonic() - started_seconds)

    def _call_twice(self, wants: Collection[_Want], call: Caller, progress: ProgressSink) -> None:
        """Where a cache lacks something, ask anew: Nix may only remember that, and the cache have it by now."""
        try:
            self._call(wants, call, progress)
        except NotFoundError as exc:
            log.info("asking caches again: %s", exc)
            self._call(wants, call, progress, anew=True)

    def _call(
        self, wants: Collection[_Want], call: Caller, progress: ProgressSink, *, anew: bool = False
    ) -> None:
        repair = [want.path for want in wants if want.repair]
        rest = [want.path for want in wants if not want.repair]
        with self._nix.open(call, anew=anew) as session:
            if repair:
                log.warning(
                    "store paths are gone that Nix has on record paths=%d first=%s", len(repair), repair[0]
                )
                with self._heard(session, call, repair):
                    session.fetch(repair, repair=True, progress=progress)
            if rest:
                with self._heard(session, call, rest):
                    needed = session.would_fetch(rest)
                with self._claims.made(needed) as claim:
                    claim.await_earlier(session.valid, call)
                    with self._heard(session, call, rest):
                        session.fetch(rest, repair=False, progress=progress)

    @contextlib.contextmanager
    def _heard(self, session: Session, call: Caller, paths: Collection[StorePath]) -> Iterator[None]:
        """End the call if nothing is heard of it for long within the block."""
        limit_seconds = self._config.stall_seconds
        with watchdog(session.heard_seconds, limit_seconds=limit_seconds, bite=call.leave) as watch:
            try:
                yield
            except Exception as exc:
                if watch.bitten:
                    raise UnavailableError(
                        f"cannot realise {name_all(paths)}: nothing was heard of Nix for {limit_seconds:g} seconds",
                        hint="is a cache or a build hanging? [nix] stall_seconds is how long silence may last",
                    ) from exc
                raise


class _Work:
    """One call of `realise`: who it is for, and its session."""

    def __init__(
        self, engine: NixRealiser, session: Questions, *, caller: Caller, progress: ProgressSink
    ) -> None:
        self._engine = engine
        self._session = session
        self._caller = caller
        self._progress = progress

    def hold(self, paths: Collection[StorePath], first: Path) -> None:
        """Make `paths` present, and root those that no other of them refers to."""
        for _ in range(_ROUNDS):
            self.ensure(paths)
            self._session.add_roots(_tops(self._session, paths), first)
            # Only now can no collector that was under way have taken them before it saw the roots.
            if len(self._session.valid(paths)) == len(paths):
                return
        raise UnavailableError(f"{name_all(paths)}: collected as garbage again and again while it was rooted")

    def ensure(self, paths: Collection[StorePath]) -> None:
        """Make `paths` present and keep them so while the session lasts."""
        self._session.protect(paths)
        for _ in range(_ROUNDS):
            wants = self._engine.lacking(self._session, paths)
            if not wants:
                return
            self._engine.fetch(
                wants,
                caller=self._caller,
                progress=self._progress,
                enough=functools.partial(self._have, wants),
            )
        raise NotFoundError(f"{name_all(paths)}: not in the store, though the fetch reported success")

    def _have(self, wants: Iterable[_Want]) -> bool:
        return not self._engine.lacking(self._session, [want.path for want in wants])


class _Logged:
    """Passes progress on, and logs it now and then."""

    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink
        self._logged_seconds = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        self._sink(progress)
        now = time.monotonic()
        if now - self._logged_seconds < _LOG_SECONDS:
            return
        self._logged_seconds = now
        log.info(
            "fetching paths=%d/%d bytes=%d/%d now=%s",
            progress.paths_done,
            progress.paths_total,
            progress.bytes_done,
            progress.bytes_total,
            progress.current[0] if progress.current else "",
        )


def _raise_failures(landed: Iterable[_Fetch], wanted: frozenset[_Want]) -> None:
    """Raise what ended a flight that was for nothing but what is wanted.

    One that was for more may have failed for the sake of that, and one whose callers had gone was ended for it; the
    rest of what they were for is tried again.
    """
    for flight in landed:
        error = flight.future.exception()
        if error is not None and flight.keys <= wanted and not flight.caller.gone:
            raise error


def _tops(session: Questions, paths: Collection[StorePath]) -> list[StorePath]:
    """Those of `paths`, all valid, that no other of them refers to."""
    if len(paths) == 1:
        return list(paths)
    references = session.references(paths)
    referred = {other for path, others in references.items() for other in others if other != path}
    return [path for path in paths if path not in referred]
