"""Where Nix keeps what it knows of a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_STATE_DIR: Final = "/nix/var/nix"


def state_directory(store_root: Path | None) -> Path:
    """Nix's state directory: that of a chroot store, else the one that the environment names, else the usual one."""
    if store_root is not None:
        return store_root / _STATE_DIR.lstrip("/")
    return Path(os.environ.get("NIX_STATE_DIR") or _STATE_DIR)
