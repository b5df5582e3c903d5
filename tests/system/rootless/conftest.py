"""What the tests of rootless nodes share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(
    str(Path(__file__).parent.parent / "node")
)  # rpc.py: the same service, called in the same way
