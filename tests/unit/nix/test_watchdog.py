"""The end of work of which nothing is heard."""

from __future__ import annotations

import threading
import time

from nixsnap.nix.watchdog import watchdog

WAIT_SECONDS = 20


def test_silence_is_ended():
    """Once it has lasted for long enough."""
    bitten = threading.Event()
    with watchdog(lambda: 0.0, limit_seconds=0.01, bite=bitten.set) as watch:
        assert bitten.wait(WAIT_SECONDS)
    assert watch.bitten


def test_what_was_before_the_block_is_no_silence():
    """Whoever waited for others for an hour has not been silent for an hour."""
    bitten = threading.Event()
    with watchdog(lambda: time.monotonic() - 3600, limit_seconds=WAIT_SECONDS * 10, bite=bitten.set) as watch:
        assert not bitten.wait(0.1)
    assert not watch.bitten


def test_no_limit():
    """Silence may last for ever."""
    bitten = threading.Event()
    with watchdog(lambda: 0.0, limit_seconds=0, bite=bitten.set) as watch:
        assert not bitten.wait(0.05)
    assert not watch.bitten
