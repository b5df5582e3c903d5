"""A store without a database is opened by one first, whoever else waits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nixsnap.errors import CancelledError, UnavailableError
from nixsnap.nix.caller import Caller
from nixsnap.nix.firstopening import FirstOpening


class Nix:
    """Makes a database as Nix does: the file `schema`, empty at first."""

    def __init__(self, state, *, makes_database=True):
        self.schema = state / "db/schema"
        self.makes_database = makes_database
        self.calls = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.error = None

    def initialise(self, caller):
        assert not caller.gone
        self.calls += 1
        self.begun.set()
        if self.error is not None:
            raise self.error
        if self.makes_database:
            self.schema.parent.mkdir(parents=True)
            self.schema.touch()
            assert self.go_on.wait(30)
            self.schema.write_text("10")


@pytest.fixture
def state(tmp_path):
    return tmp_path / "nix/var/nix"


def test_one_opens_it_and_the_others_wait(state):
    """Also those of another process, as which each of these objects may pass."""
    nix = Nix(state)
    with ThreadPoolExecutor(10) as pool:
        others = [pool.submit(FirstOpening(nix=nix, state=state).ensure, Caller()) for _ in range(10)]
        assert nix.begun.wait(30)
        assert not any(other.done() for other in others)
        nix.go_on.set()
        for other in others:
            other.result()
    assert nix.calls == 1


def test_a_failure_leaves_it_to_the_next(state):
    """Whoever comes next tries again."""
    nix = Nix(state)
    nix.go_on.set()
    opening = FirstOpening(nix=nix, state=state)
    nix.error = UnavailableError("no")
    with pytest.raises(UnavailableError):
        opening.ensure(Caller())
    nix.error = None
    opening.ensure(Caller())
    opening.ensure(Caller())
    assert nix.calls == 2


def test_a_caller_that_goes_away_waits_no_longer(state):
    """The one that opens it goes on."""
    nix, caller = Nix(state), Caller()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(FirstOpening(nix=nix, state=state).ensure, Caller())
        assert nix.begun.wait(30)
        second = pool.submit(FirstOpening(nix=nix, state=state).ensure, caller)
        caller.leave()
        with pytest.raises(CancelledError, match="first opening"):
            second.result()
        nix.go_on.set()
        first.result()


@pytest.mark.parametrize("reachable", [True, False])
def test_a_store_whose_database_is_elsewhere(tmp_path, reachable):
    """As behind the daemon of another machine or user: it is asked once, and nobody waits for anybody after that."""
    state = tmp_path / "state"
    if not reachable:
        state.write_text("no directory")
    nix = Nix(state, makes_database=False)
    opening = FirstOpening(nix=nix, state=state)
    opening.ensure(Caller())
    opening.ensure(Caller())
    assert nix.calls == 1
