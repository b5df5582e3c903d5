"""The signal that ends a service, whichever thread the kernel gives it to."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A process of its own, for a signal is the whole process's.
SCRIPT = """
import os, signal, sys, threading
from nixsnap.stopsignal import stop_signal

number, taker = getattr(signal, sys.argv[1]), sys.argv[2]
with stop_signal() as stop:
    if taker == "another thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    os.kill(os.getpid(), number)
    assert stop.recv(1)
    os.kill(os.getpid(), number)  # once more, while all is being ended
    assert stop.recv(1)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
print("ended well", flush=True)
os.kill(os.getpid(), number)
"""


@pytest.mark.parametrize("taker", ["the main thread", "another thread"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_wakes_who_waits(number, taker):
    """It does so where another thread takes the signal too; after the block it does what it did before."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, number, taker], capture_output=True, text=True, timeout=30, check=False
    )
    assert (result.stdout, result.returncode) == ("ended well\n", {"SIGTERM": -15, "SIGINT": -2}[number]), (
        result.stderr
    )
