"""Fetches that take turns at what several of them need."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from nixsnap.errors import CancelledError
from nixsnap.nix.caller import Caller
from nixsnap.nix.claims import Claims
from nixsnap.nix.storepath import StorePath

WAIT_SECONDS = 20
A, B, C, D = (StorePath(store_dir="/nix/store", name=f"{letter * 32}-x") for letter in "abcd")


class Store:
    """What is there; says when it has been asked."""

    def __init__(self):
        self.present, self.asked = set(), threading.Semaphore(0)
        self.questions = []

    def valid(self, paths):
        self.questions.append(set(paths))
        self.asked.release()
        return self.present & set(paths)

    def await_question(self):
        assert self.asked.acquire(timeout=WAIT_SECONDS)


@pytest.fixture
def waiting():
    """Starts waits, each on a thread."""
    with ThreadPoolExecutor(8) as pool:

        def start(claim, store, caller=None):
            return pool.submit(claim.await_earlier, store.valid, caller or Caller())

        yield start


def test_nothing_in_common():
    """Disjoint claims know nothing of each other, nor does the first of several wait, and no question is asked."""
    claims, store = Claims(), Store()
    with claims.made([A, B]) as first, claims.made([C]) as second, claims.made([B, C]):
        first.await_earlier(store.valid, Caller())
        second.await_earlier(store.valid, Caller())
    assert store.questions == []


def test_the_later_waits_for_what_both_need(waiting):
    """For that alone, and of that for what is not there yet; the earlier goes on."""
    claims, store = Claims(), Store()
    with claims.made([A, B, C]), claims.made([B, C, D]) as later:
        done = waiting(later, store)
        store.await_question()
        store.present.add(B)
        store.await_question()
        store.await_question()
        assert not done.done()
        assert store.questions[-1] == {C}
        store.present.add(C)
        done.result(WAIT_SECONDS)
    assert all(question <= {B, C} for question in store.questions)


def test_the_earlier_gives_up(waiting):
    """Its part falls to the next in order, and to that one alone: the third waits on."""
    claims, store = Claims(), Store()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(claims.made([A, B]))
        next_claim = second.enter_context(claims.made([B, C]))
        third = claims.made([B, D])
        with third as third_claim:
            next_done, third_done = waiting(next_claim, store), waiting(third_claim, store)
            store.await_question()
            first.close()
            next_done.result(WAIT_SECONDS)
            for _ in range(3):
                store.await_question()
            assert not third_done.done()
            second.close()
            third_done.result(WAIT_SECONDS)


def test_two_that_wait_for_the_same_two(waiting):
    """Whatever order those before them end in, they do not end up waiting for each other: the later waits."""
    claims, store = Claims(), Store()
    with ExitStack() as one, ExitStack() as other, ExitStack() as third:
        one.enter_context(claims.made([A]))
        other.enter_context(claims.made([B]))
        third_claim = third.enter_context(claims.made([A, B, C]))
        with claims.made([A, B, D]) as fourth_claim:
            fourth_done, third_done = waiting(fourth_claim, store), waiting(third_claim, store)
            store.await_question()
            other.close()
            store.await_question()
            one.close()
            third_done.result(WAIT_SECONDS)
            assert not fourth_done.done()
            third.close()
            fourth_done.result(WAIT_SECONDS)


def test_caller_that_goes_away(waiting):
    """It waits no longer, and its claim goes with it."""
    claims, store, caller = Claims(), Store(), Caller()
    with claims.made([A]), claims.made([B]):
        with claims.made([A, B]) as later:
            done = waiting(later, store, caller)
            store.await_question()
            caller.leave()
            with pytest.raises(CancelledError, match=f"{A} and 1 more"):
                done.result(WAIT_SECONDS)
        with claims.made([A, C]) as next_claim:
            gone = Caller()
            gone.leave()
            with pytest.raises(CancelledError):
                next_claim.await_earlier(store.valid, gone)


def test_a_store_that_does_not_answer():
    """Its error is whoever asks's."""
    claims = Claims()

    def fail(_paths):
        raise ConnectionError

    with claims.made([A]), claims.made([A]) as later, pytest.raises(ConnectionError):
        later.await_earlier(fail, Caller())
