"""Where things lie below the root directory; DESIGN: files are named by snapshot ids, which are never used twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import attrs

from nixsnap.config import StoreView

# What directories and views that are still being made are called; the sweep at start-up knows them by this.
TEMPORARY_PREFIX: Final = "new-"
# What directories of snapshots that are being removed are called; every sweep knows them by this.
REMOVED_PREFIX: Final = "removed-"
_MAPPED_STORE_SUFFIX: Final = "-store"


def _below(name: str) -> Any:
    """A path that is joined once: that takes longer than looking up a row, and every call needs a few."""
    return attrs.field(init=False, default=attrs.Factory(lambda self: self.root / name, takes_self=True))


@attrs.frozen
class Layout:
    """Paths below one root directory.

    Attributes:
        root: An absolute path without `,`, `:` or a backslash, which mount options could not carry.
        lock: The file that a running daemon holds a lock on.
        metadata: The database.
        snapshots: Directory of the snapshots' own directories.
        works: Directory of overlay work directories of chains with a nix layer.
        views: Directory of the mount points of rootfs views.
        stubs: Directory of stub layers, a directory for each kind of view.
        shown_store: Mount point of the store, where it is shown another way than it lies on this host.
        reserve: A file that is given up when the disk is full.
        gcroots: Directory of Nix's roots against garbage collection, by snapshot id.
        image_gcroots: Directory of the roots on image archives.
    """

    root: Path
    lock: Path = _below("lock")
    metadata: Path = _below("metadata.sqlite")
    snapshots: Path = _below("snapshots")
    works: Path = _below("work")
    views: Path = _below("views")
    stubs: Path = _below("stubs")
    shown_store: Path = _below("store")
    reserve: Path = _below("reserve")
    gcroots: Path = _below("gcroots")
    image_gcroots: Path = _below("gcroots/images")

    def snapshot(self, snapshot_id: int) -> Path:
        """A snapshot's own directory, which is the layer of it in a rootfs view."""
        return self.snapshots / str(snapshot_id)

    def upper(self, snapshot_id: int) -> Path:
        """A snapshot's files, which are the layer of it where containerd mounts the overlay."""
        return self.snapshots / f"{snapshot_id}/fs"

    def plain_work(self, snapshot_id: int) -> Path:
        """The work directory of a chain without a nix layer: where containerd's own snapshotter has it."""
        return self.snapshots / f"{snapshot_id}/work"

    def work(self, snapshot_id: int) -> Path:
        """The work directory of a rootfs view; the upper one holds `upper`'s parent, so it cannot lie there."""
        return self.works / str(snapshot_id)

    def view(self, snapshot_id: int) -> Path:
        """The mount point of a rootfs view."""
        return self.views / str(snapshot_id)

    def mapped_store(self, snapshot_id: int) -> Path:
        """The mount point of the store with the owners that it has in a view, where store paths are mounts."""
        return self.views / f"{snapshot_id}{_MAPPED_STORE_SUFFIX}"

    def removed(self, snapshot_id: int) -> Path:
        """A snapshot's own directory while it is removed."""
        return self.snapshots / f"{REMOVED_PREFIX}{snapshot_id}"

    @staticmethod
    def owner_of(path: Path) -> int | None:
        """The id of the snapshot that a path directly below one of the directories belongs to; None for others."""
        name = path.name.removesuffix(_MAPPED_STORE_SUFFIX)
        return int(name) if name.isdecimal() else None

    def stub(self, kind: StoreView, snapshot_id: int) -> Path:
        """The stub layer of a nix layer."""
        return self.stubs / kind.value / str(snapshot_id)

    def gcroot(self, snapshot_id: int) -> Path:
        """Directory of the roots that a nix layer holds."""
        return self.gcroots / str(snapshot_id)

    def make(self) -> None:
        """Make the directories that are not there yet.

        Raises:
            OSError: One of them cannot be made.
        """
        # containerd makes its root 0700 as well: layers hold setuid programs of every age.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.snapshots, self.works, self.views, self.stubs, self.gcroots):
            directory.mkdir(mode=0o700, exist_ok=True)
