"""How much to measure, and on what."""

from __future__ import annotations

from pathlib import Path

import attrs
from lab import Installation


@attrs.frozen(kw_only=True)
class Settings:
    """What the command line decided.

    Attributes:
        installation: The containerd to measure on.
        quick: Take few samples: to check that everything works, not for the figures.
        compare_socket: Another daemon that serves containerd's snapshots API, to run the cycles on as well.
    """

    installation: Installation
    quick: bool = False
    compare_socket: Path | None = None

    def rounds(self, full: int) -> int:
        """How many samples to take where a full run takes `full`."""
        return min(full, 2) if self.quick else full
