"""The C core under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SANITIZER_RUN = Path(__file__).parent / "sanitizer/run"


def test_c_core_under_sanitizers():
    """The C core, built with sanitizers and every warning an error, passes its own tests with no finding."""
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(
        [SANITIZER_RUN], capture_output=True, text=True, check=False, timeout=1200, env=environment
    )
    assert result.returncode == 0, f"{result.stdout[-20000:]}{result.stderr[-20000:]}"
