"""A node as tests see it: containerd and its snapshotter."""

from __future__ import annotations

from pathlib import Path

import attrs

from lab.containerd import Containerd
from lab.daemon import NixsnapDaemon
from lab.place import Place


@attrs.frozen(kw_only=True)
class Node:
    """A containerd and the nixsnap that serves it, below one directory."""

    nixsnap: NixsnapDaemon
    containerd: Containerd
    directory: Path

    @property
    def place(self) -> Place:
        """Whose namespaces both run in."""
        return self.containerd.place
