"""Which network namespace things are started in."""

from __future__ import annotations

import threading

import pytest

from nixsnap import netns
from nixsnap.errors import FailedPreconditionError


@pytest.mark.parametrize("state", [None, "", "here", "/nowhere"])
def test_without_a_detached_namespace_nothing_changes(monkeypatch, tmp_path, state):
    """Not below rootlesskit, or below one that detached none: on the same thread, in the same network."""
    monkeypatch.delenv("ROOTLESSKIT_STATE_DIR", raising=False)
    if state is not None:
        monkeypatch.setenv("ROOTLESSKIT_STATE_DIR", str(tmp_path) if state == "here" else state)
    assert netns.detached() is None
    assert netns.within(threading.get_ident) == threading.get_ident()


def test_a_namespace_that_is_none(monkeypatch, tmp_path):
    """Nothing is started elsewhere instead; the error has the file's name."""
    monkeypatch.setenv("ROOTLESSKIT_STATE_DIR", str(tmp_path))
    (tmp_path / "netns").touch()
    started = []
    with pytest.raises(FailedPreconditionError, match=str(tmp_path / "netns")):
        netns.within(lambda: started.append(1))
    assert started == []
