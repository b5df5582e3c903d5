"""Ways to a Nix daemon."""

from __future__ import annotations

import threading

import pytest

from nixsnap.errors import UnavailableError
from nixsnap.nix import process
from nixsnap.nix.worker.transport import ProcessTransport


def test_a_system_that_starts_no_more_threads(monkeypatch):
    """The process that was started for the connection is not left behind."""

    def start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(UnavailableError, match="cannot talk to Nix: can't start new thread"):
        ProcessTransport(["cat"], environment={})
    assert not process._running
