"""Work that several want at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from nixsnap.errors import CancelledError, UnavailableError
from nixsnap.nix.caller import Caller
from nixsnap.nix.flights import Flights, await_first
from nixsnap.nix.progress import Progress, ProgressSum, ignore

WAIT_SECONDS = 20


@pytest.fixture
def executor():
    with ThreadPoolExecutor(4) as pool:
        yield pool


class Gate:
    """Work that says when it has begun and ends when it is let."""

    def __init__(self):
        self.begun, self.open, self.flights = threading.Semaphore(0), threading.Event(), []

    def __call__(self, flight):
        self.flights.append(flight)
        self.begun.release()
        with flight.caller.told(self.open.set):
            assert self.open.wait(WAIT_SECONDS)
        if flight.caller.gone:
            raise UnavailableError("given up")
        return sorted(flight.keys)

    def await_begun(self):
        assert self.begun.acquire(timeout=WAIT_SECONDS)


def no_sink(_flight):
    return ignore


def test_those_who_want_the_same_share_it(executor):
    """The work is done once, and all get its result; then the key is free."""
    flights, gate = Flights(executor, grace_seconds=30), Gate()
    with ExitStack() as stack:
        aboard = [stack.enter_context(flights.board(["a"], gate, sink=no_sink)) for _ in range(10)]
        assert len({flight for (flight,) in aboard}) == 1
        gate.open.set()
        assert aboard[9][0].future.result(WAIT_SECONDS) == ["a"]
    with flights.grounded() as keys:
        assert keys == set()
    with flights.board(["a"], gate, sink=no_sink) as (flight,):
        assert flight is not aboard[0][0]


def test_only_what_is_not_in_the_air_is_started(executor):
    """Of overlapping wants each key is worked on once."""
    flights, gate = Flights(executor, grace_seconds=30), Gate()
    with (
        flights.board(["a", "b"], gate, sink=no_sink) as (first,),
        flights.board(["b", "c"], gate, sink=no_sink) as both,
    ):
        assert both[0] is first
        assert both[1].keys == {"c"}
        gate.open.set()
        assert both[1].future.result(WAIT_SECONDS) == ["c"]


def test_failure_is_everyones_and_the_next_starts_clean(executor):
    """All aboard hear of it; the key is free before they do."""

    def fail(_flight):
        raise UnavailableError("it rains")

    flights = Flights(executor, grace_seconds=30)
    with flights.board(["a"], fail, sink=no_sink) as (flight,):
        with pytest.raises(UnavailableError, match="it rains"):
            flight.future.result(WAIT_SECONDS)
        with flights.board(["a"], lambda _: "well", sink=no_sink) as (again,):
            assert again.future.result(WAIT_SECONDS) == "well"


def test_work_outlives_the_one_who_began_it(executor):
    """While anyone is aboard it goes on, whoever has left."""
    flights, gate = Flights(executor, grace_seconds=0), Gate()
    with ExitStack() as others:
        with flights.board(["a"], gate, sink=no_sink) as (flight,):
            gate.await_begun()
            others.enter_context(flights.board(["a"], gate, sink=no_sink))
        assert not flight.caller.gone
        gate.open.set()
        assert flight.future.result(WAIT_SECONDS) == ["a"]


def test_within_the_time_of_grace_a_retry_comes_aboard(executor):
    """Nobody is aboard for a moment, and the work is still the same."""
    flights, gate = Flights(executor, grace_seconds=30), Gate()
    with flights.board(["a"], gate, sink=no_sink) as (first,):
        gate.await_begun()
    with flights.board(["a"], gate, sink=no_sink) as (again,):
        assert again is first
        gate.open.set()
        assert again.future.result(WAIT_SECONDS) == ["a"]


def test_after_the_time_of_grace_the_work_is_told_to_end(executor):
    """It is given up, and who comes then begins anew."""
    flights, gate = Flights(executor, grace_seconds=0), Gate()
    with flights.board(["a"], gate, sink=no_sink) as (flight,):
        gate.await_begun()
    with pytest.raises(UnavailableError, match="given up"):
        flight.future.result(WAIT_SECONDS)
    with flights.board(["a"], lambda _: "new", sink=no_sink) as (again,):
        assert again.future.result(WAIT_SECONDS) == "new"


def test_giving_up_a_great_many_takes_no_thread_for_each():
    """An external builder has a flight for each path of a closure, and a caller leaves all of them at once."""
    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        flights = Flights(pool, grace_seconds=0.5)
        before = threading.active_count()
        with ExitStack() as stack:
            aboard = [
                stack.enter_context(flights.board([number], gate, sink=no_sink))[0] for number in range(300)
            ]
            gate.await_begun()
        assert threading.active_count() < before + 5
        for flight in aboard:
            with pytest.raises((CancelledError, UnavailableError)):
                flight.future.result(WAIT_SECONDS)


def test_a_flight_that_waits_for_a_thread_can_be_given_up():
    """There is a bound to what goes on at once; what waits and is wanted by nobody never begins."""
    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        flights = Flights(pool, grace_seconds=0)
        with flights.board(["a"], gate, sink=no_sink) as (running,):
            gate.await_begun()
            with flights.board(["b"], gate, sink=no_sink) as (waiting,):
                pass
            while not waiting.caller.gone:
                threading.Event().wait(0.01)
            gate.open.set()
            assert running.future.result(WAIT_SECONDS) == ["a"]
        with pytest.raises(CancelledError):
            waiting.future.result(WAIT_SECONDS)
    assert gate.flights == [running]


def test_executor_that_is_shut_down():
    """At the end of the daemon nothing begins, and nobody waits for it."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    flights = Flights(pool, grace_seconds=0)
    with (
        flights.board(["a"], lambda _: None, sink=no_sink) as (flight,),
        pytest.raises(UnavailableError, match="stopping"),
    ):
        flight.future.result(WAIT_SECONDS)


def test_end_all(executor):
    """Everyone hears of it."""
    flights, gate = Flights(executor, grace_seconds=30), Gate()
    with flights.board(["a"], gate, sink=no_sink) as (flight,):
        gate.await_begun()
        flights.end_all()
        with pytest.raises(UnavailableError, match="given up"):
            flight.future.result(WAIT_SECONDS)


def test_waiting_ends_with_the_caller(executor):
    """A caller that goes away does not wait for the work."""
    flights, gate, caller = Flights(executor, grace_seconds=30), Gate(), Caller()
    with flights.board(["a"], gate, sink=no_sink) as aboard:
        threading.Timer(0.05, caller.leave).start()
        with pytest.raises(CancelledError, match="waited for a"):
            await_first(aboard, caller, timeout_seconds=None, waiting_for="a")
        await_first(aboard, Caller(), timeout_seconds=0.01, waiting_for="a")
        gate.open.set()
        await_first(aboard, Caller(), timeout_seconds=None, waiting_for="a")


def test_progress_of_several_flights_is_added_up(executor):
    """Whoever waits for two fetches sees one sum."""
    flights, gate, moments = Flights(executor, grace_seconds=30), Gate(), []
    parts = ProgressSum(moments.append)
    with (
        flights.board(["a"], gate, sink=no_sink),
        flights.board(["a", "b"], gate, sink=parts.part) as (first, second),
    ):
        first.tell(Progress(paths_done=1, paths_total=2, bytes_done=3, bytes_total=4, current=("a",)))
        second.tell(Progress(paths_done=1, paths_total=1, bytes_done=5, bytes_total=5))
        gate.open.set()
    assert moments[-1] == Progress(paths_done=2, paths_total=3, bytes_done=8, bytes_total=9, current=("a",))
