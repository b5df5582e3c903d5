"""Work that several callers want at the same time, done once.

A *flight* works on one or more keys. Whoever wants a key that is in the air goes aboard, and whoever leaves changes
nothing for the others; when all have left, the flight goes on for a time of grace, for a retry to come aboard, and is
told to end after that. A key is free again before its flight reports success or failure, so that a retry starts clean.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from typing import Generic, TypeVar

from nixsnap.errors import UnavailableError
from nixsnap.nix.caller import Caller
from nixsnap.nix.later import Appointment, later
from nixsnap.nix.progress import Progress, ProgressSink

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Flight(Generic[K, T]):
    """Work under way on some keys.

    Attributes:
        keys: What it works on.
        future: Has its result or its error in the end.
        caller: On whose behalf the work is done: goes away when nobody has wanted it for the time of grace.
    """

    def __init__(self, keys: frozenset[K], *, grace_seconds: float) -> None:
        self.keys = keys
        self.future: Future[T] = Future()
        self.caller = Caller()
        self._grace_seconds = grace_seconds
        self._guard = threading.Lock()
        self._aboard = 0
        self._abandonment: Appointment | None = None
        self._sinks: list[ProgressSink] = []

    def tell(self, progress: Progress) -> None:
        """Tell all aboard how it goes on."""
        for sink in list(self._sinks):
            sink(progress)

    @contextmanager
    def aboard(self, sink: ProgressSink) -> Iterator[None]:
        """Be one of those for whom the work is done."""
        with self._guard:
            self._aboard += 1
            self._sinks.append(sink)
            if self._abandonment is not None:
                self._abandonment.call_off()
                self._abandonment = None
        try:
            yield
        finally:
            with self._guard:
                self._aboard -= 1
                self._sinks.remove(sink)
                if not self._aboard and not self.future.done():
                    self._abandonment = later(self._grace_seconds, self._abandon)

    def _abandon(self) -> None:
        with self._guard:
            if self._aboard:  # somebody came just now
                return
        self.caller.leave()


Work = Callable[[Flight[K, T]], T]


class Flights(Generic[K, T]):
    """The flights in the air.

    Args:
        executor: Threads for the work; a flight that finds none free waits, and may be boarded all the same.
        grace_seconds: How long a flight goes on with nobody aboard.
    """

    def __init__(self, executor: Executor, *, grace_seconds: float) -> None:
        self._executor = executor
        self._grace_seconds = grace_seconds
        self._guard = threading.Lock()
        self._flights: dict[K, Flight[K, T]] = {}

    @contextmanager
    def board(
        self, keys: Collection[K], work: Work[K, T], *, sink: Callable[[object], ProgressSink]
    ) -> Iterator[list[Flight[K, T]]]:
        """Go aboard all flights that work on any of `keys`, and start one for the keys that none works on.

        Args:
            keys: What is wanted.
            work: Works on the keys of the flight that it is given; should end soon once that flight's caller goes.
            sink: Makes what is told of the progress of a flight.

        Yields:
            The flights, the new one last. A flight whose caller has gone cannot be boarded: its keys are free.
        """
        with ExitStack() as stack:
            with self._guard:
                flights, started = self._choose(keys)
                for flight in flights:
                    stack.enter_context(flight.aboard(sink(flight)))
            if started is not None:
                self._start(started, work)
            yield flights

    @contextmanager
    def grounded(self) -> Iterator[set[K]]:
        """Let nobody begin or land while the block lasts.

        Yields:
            What is being worked on.
        """
        with self._guard:
            yield set(self._flights)

    def end_all(self) -> None:
        """Tell all flights to end."""
        with self._guard:
            flights = set(self._flights.values())
        for flight in flights:
            flight.caller.leave()

    def _choose(self, keys: Collection[K]) -> tuple[list[Flight[K, T]], Flight[K, T] | None]:
        found = {key: flight for key in keys if (flight := self._flights.get(key)) and not flight.caller.gone}
        flights = list(dict.fromkeys(found.values()))
        rest = frozenset(key for key in keys if key not in found)
        if not rest:
            return flights, None
        started: Flight[K, T] = Flight(rest, grace_seconds=self._grace_seconds)
        self._flights.update(dict.fromkeys(rest, started))
        return [*flights, started], started

    def _start(self, flight: Flight[K, T], work: Work[K, T]) -> None:
        try:
            self._executor.submit(self._fly, flight, work)
        except RuntimeError as exc:  # the executor is shut down
            self._land(flight)
            flight.future.set_exception(UnavailableError(f"nixsnap is stopping: {exc}"))

    def _fly(self, flight: Flight[K, T], work: Work[K, T]) -> None:
        try:
            flight.caller.check(waiting_for="its turn")
            result = work(flight)
        except BaseException as exc:  # noqa: BLE001 - the future carries it to all who wait
            self._land(flight)
            flight.future.set_exception(exc)
        else:
            self._land(flight)
            flight.future.set_result(result)

    def _land(self, flight: Flight[K, T]) -> None:
        with self._guard:
            for key in flight.keys:
                if self._flights.get(key) is flight:
                    del self._flights[key]


def await_first(
    flights: Collection[Flight[K, T]], caller: Caller, *, timeout_seconds: float | None, waiting_for: str
) -> None:
    """Wait until any of the flights has ended, or time is up.

    Raises:
        CancelledError: The caller went away.
    """
    awake = threading.Event()
    with caller.told(awake.set):
        for flight in flights:
            flight.future.add_done_callback(lambda _: awake.set())
        awake.wait(timeout_seconds)
    caller.check(waiting_for=waiting_for)
