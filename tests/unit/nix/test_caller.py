"""Callers that may go away."""

from __future__ import annotations

import pytest

from nixsnap.errors import CancelledError
from nixsnap.nix.caller import Caller


def test_those_who_asked_are_told_once():
    """Within its block a callback hears of it, and not again when the caller leaves twice."""
    caller, heard = Caller(), []
    with caller.told(lambda: heard.append("first")), caller.told(lambda: heard.append("second")):
        caller.check(waiting_for="nothing")
        caller.leave()
        caller.leave()
    assert heard == ["first", "second"]


def test_after_its_block_a_callback_hears_nothing():
    """Whoever has what it waited for does not care any more."""
    caller, heard = Caller(), []
    with caller.told(lambda: heard.append("told")):
        pass
    caller.leave()
    assert heard == []


def test_a_caller_that_has_gone_is_no_longer_served():
    """Those who come late are told at once, and checks fail."""
    caller, heard = Caller(), []
    caller.leave()
    with caller.told(lambda: heard.append("told")):
        assert heard == ["told"]
    with pytest.raises(CancelledError, match="went away while it waited for paths"):
        caller.check(waiting_for="paths")
