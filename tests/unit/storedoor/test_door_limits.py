"""How much one user, and all together, may ask."""

from __future__ import annotations

import pytest

from nixsnap.errors import ResourceExhaustedError
from nixsnap.storedoor.limits import Gate, Limits


class Clock:
    """A clock that stands until it is put forward."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_user_does_not_take_all_connections():
    """He has his share; others come in still, until all is taken."""
    gate = Gate(Limits(connections=3, per_user=2))
    gate.enter(1)
    gate.enter(1)
    with pytest.raises(ResourceExhaustedError, match="user 1 has 2 connections"):
        gate.enter(1)
    gate.enter(2)
    with pytest.raises(ResourceExhaustedError, match="there are 3 connections"):
        gate.enter(3)
    gate.leave(1)
    gate.enter(3)
    assert gate.connections == 3
    for uid in (1, 2, 3):
        gate.leave(uid)
    assert gate.connections == 0
    assert not gate._inside


def test_an_allowance_fills_again():
    """One more after each interval, and never more than at first."""
    clock = Clock()
    gate = Gate(Limits(burst=2, refill_seconds=10), clock=clock)
    gate.spend(1)
    gate.spend(1)
    with pytest.raises(ResourceExhaustedError, match="user 1 asks more often than every 10 seconds"):
        gate.spend(1)
    gate.spend(2)
    clock.now = 10
    gate.spend(1)
    with pytest.raises(ResourceExhaustedError):
        gate.spend(1)
    clock.now = 1000
    gate.spend(1)
    gate.spend(1)
    with pytest.raises(ResourceExhaustedError):
        gate.spend(1)


def test_users_who_have_their_allowance_back_are_forgotten():
    """However many there were, and not those who have spent theirs."""
    clock = Clock()
    gate = Gate(Limits(burst=1, refill_seconds=10), clock=clock)
    for uid in range(1, 1024):
        gate.spend(uid)
    clock.now = 20
    gate.spend(5000)
    gate.spend(5001)
    assert set(gate._allowances) == {5000, 5001}
    with pytest.raises(ResourceExhaustedError):
        gate.spend(5000)
