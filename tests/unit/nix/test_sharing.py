"""Sessions that several callers share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nixsnap.errors import CancelledError, UnavailableError
from nixsnap.nix.caller import Caller
from nixsnap.nix.sharing import SharedSessions
from nixsnap.nix.storepath import StorePath

WAIT_SECONDS = 20
A, B = (StorePath(store_dir="/nix/store", name=f"{letter * 32}-x") for letter in "ab")


class Store:
    """A store whose sessions note what they are asked. While `answering` is clear they are silent."""

    def __init__(self, *, is_worth_sharing=True):
        self.is_worth_sharing = is_worth_sharing
        self.asked, self.sessions, self.open_now = [], 0, 0
        self.answering, self.silent = threading.Event(), threading.Semaphore(0)
        self.answering.set()
        self.failure = None

    @contextmanager
    def open(self, caller):
        self.sessions += 1
        self.open_now += 1
        try:
            with caller.told(self.answering.set):
                try:
                    yield Session(self, self.sessions, caller)
                except ConnectionError as exc:
                    caller.check(waiting_for="the store")
                    raise UnavailableError("the store broke off") from exc
        finally:
            self.open_now -= 1


class Session:
    def __init__(self, store, number, caller):
        self.store, self.number, self.caller = store, number, caller
        self.asking = threading.Lock()

    def _asked(self, *what):
        assert self.asking.acquire(blocking=False), "two questions at once"
        try:
            self.store.asked.append((self.number, *what))
            if not self.store.answering.is_set():
                self.store.silent.release()
                assert self.store.answering.wait(WAIT_SECONDS)
                if self.caller.gone:
                    raise ConnectionError
            if self.store.failure is not None:
                raise self.store.failure
        finally:
            self.asking.release()

    def protect(self, paths):
        self._asked("protect", *paths)

    def valid(self, paths):
        self._asked("valid", *paths)
        return set(paths)

    def references(self, paths):
        self._asked("references", *paths)
        return {path: frozenset({A}) for path in paths}

    def add_roots(self, paths, first):
        self._asked("add_roots", first, *paths)


def test_those_who_ask_the_same_share_a_session():
    """What holds for all is asked once, in one session; what is each one's own, once for each."""
    store = Store()
    sessions = SharedSessions(store)
    roots = [Path(f"/roots/{number}") for number in range(10)]
    everyone_is_in = threading.Barrier(10)

    def work(root):
        with sessions.joined("image", Caller()) as session:
            everyone_is_in.wait(WAIT_SECONDS)
            session.protect([A, B])
            assert session.references([B]) == {B: frozenset({A})}
            session.add_roots([B], root)
            assert session.valid([A]) == {A}

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, roots))
    assert (store.sessions, store.open_now) == (1, 0)
    asked = [(kind, *rest) for _, kind, *rest in store.asked]
    assert [what for what in asked if what[0] == "protect" and len(what) > 1] == [("protect", A, B)]
    assert asked.count(("references", B)) == 1
    assert sorted(what[1] for what in asked if what[0] == "add_roots") == roots
    assert asked.count(("valid", A)) == 10


def test_other_subjects_have_sessions_of_their_own():
    """Nobody waits for the answers to somebody else's questions."""
    store = Store()
    sessions = SharedSessions(store)
    with sessions.joined("one", Caller()) as one, sessions.joined("two", Caller()) as two:
        one.valid([A])
        two.valid([A])
        assert store.open_now == 2
    assert store.open_now == 0


def test_one_that_is_not_worth_sharing_is_not_shared():
    """Each caller has its own, and what it asks goes there as it is."""
    store = Store(is_worth_sharing=False)
    sessions = SharedSessions(store)
    with sessions.joined("image", Caller()) as one, sessions.joined("image", Caller()) as two:
        assert one is not two
        one.protect([A])
        two.protect([A])
    assert store.asked == [(1, "protect", A), (2, "protect", A)]


def test_nobody_joins_once_somebody_has_left():
    """Who comes later gets a session with nothing remembered; those inside keep theirs to the end."""
    store = Store()
    sessions = SharedSessions(store)
    with ExitStack() as stack:
        slow = stack.enter_context(sessions.joined("image", Caller()))
        with sessions.joined("image", Caller()) as fast:
            fast.protect([A])
        late = stack.enter_context(sessions.joined("image", Caller()))
        late.protect([A])
        slow.valid([A])
    assert store.asked == [(1, "protect", A), (2, "protect", A), (1, "valid", A)]
    assert store.open_now == 0


def test_a_broken_session_ends_for_all_who_share_it():
    """Everyone gets the store's error, in its own words, and the next to come a session that works."""
    store = Store()
    sessions = SharedSessions(store)
    with ExitStack() as stack:
        one, two = (stack.enter_context(sessions.joined("image", Caller())) for _ in range(2))
        store.failure = ConnectionError()
        with pytest.raises(UnavailableError, match="broke off"):
            one.valid([A])
        assert store.open_now == 0
        store.failure = None
        with pytest.raises(UnavailableError, match="broke off"):
            two.valid([A])
        with sessions.joined("image", Caller()) as three:
            assert three.valid([A]) == {A}
    assert store.sessions == 2


def test_a_store_that_cannot_be_opened():
    """The error is that of opening it, for each who asks."""

    class Closed(Store):
        @contextmanager
        def open(self, caller):
            caller.check(waiting_for="the door")
            raise UnavailableError("nobody is at home")
            yield

    with SharedSessions(Closed()).joined("image", Caller()) as session:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="nobody is at home"):
                session.valid([A])


def test_a_caller_that_goes_leaves_the_others_their_session():
    """It is not served any more, and nobody else notices."""
    store = Store()
    sessions = SharedSessions(store)
    going = Caller()
    with sessions.joined("image", going) as one, sessions.joined("image", Caller()) as two:
        going.leave()
        with pytest.raises(CancelledError, match="Nix"):
            one.valid([A])
        assert two.valid([A]) == {A}
    assert store.sessions == 1


def test_a_silent_store_is_given_up_when_all_callers_have_gone():
    """Those who wait for an answer need not come back to be counted; who comes meanwhile is none of them."""
    store = Store()
    sessions = SharedSessions(store)
    callers = [Caller(), Caller()]
    with ExitStack() as stack, ThreadPoolExecutor(len(callers)) as pool:
        seats = [stack.enter_context(sessions.joined("image", caller)) for caller in callers]
        store.answering.clear()
        asked = [pool.submit(seat.valid, [A]) for seat in seats]
        assert store.silent.acquire(timeout=WAIT_SECONDS)
        callers[0].leave()
        assert not store.answering.is_set()
        callers[1].leave()
        for answer in asked:
            assert isinstance(answer.exception(WAIT_SECONDS), CancelledError)
        with sessions.joined("image", Caller()) as newcomer:
            assert newcomer.valid([A]) == {A}
    assert (store.sessions, store.open_now) == (2, 0)
