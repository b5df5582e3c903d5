"""Entry point: `python tests/bench/run.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

# In place of this directory, whose modules are the package `bench`; `lab` is the system tests' harness.
sys.path[:1] = [str(TESTS), str(TESTS / "system")]

from bench.cli import main  # noqa: E402 - found through the path set above

if __name__ == "__main__":
    sys.exit(main())
