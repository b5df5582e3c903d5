"""What the tests of a node share with those of pushing: a private registry."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "push"))
