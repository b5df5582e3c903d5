"""The directories of one snapshot."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from nixsnap.metadata.records import Snapshot
from nixsnap.mounts import filetrees
from nixsnap.snapshots.layout import TEMPORARY_PREFIX, Layout

# Modes as containerd's overlayfs snapshotter makes them (prepareDirectory in plugins/snapshots/overlay/overlay.go).
_FILES_MODE: Final = 0o755
_WORK_MODE: Final = 0o711


def make(layout: Layout, snapshot: Snapshot, *, work: bool, owner: tuple[int, int] | None = None) -> None:
    """Make the directory of a new snapshot: complete, or not at all.

    Args:
        layout: Where it goes.
        snapshot: The snapshot; its root directory gets owner and mode of its parent's.
        work: Whether it needs a work directory of its own.
        owner: The user and group that the root directory gets in place of its parent's.

    Raises:
        OSError: The disk is full, or the parent's directory is gone.
    """
    # Strings, not Path objects: each Prepare comes through here while all other writers wait, and joining paths took
    # half of the time.
    temporary = f"{layout.snapshots}/{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    files = f"{temporary}/fs"
    try:
        os.mkdir(temporary, 0o700)
        os.mkdir(files, _FILES_MODE)
        if work:
            os.mkdir(f"{temporary}/work", _WORK_MODE)
        if snapshot.parent_ids:
            # overlayfs shows the upper layer's root, so without this a container could not enter a root directory that
            # a base image gave to another owner.
            parent = os.lstat(layout.upper(snapshot.parent_ids[0]))
            os.chown(files, parent.st_uid, parent.st_gid)
            os.chmod(files, stat.S_IMODE(parent.st_mode))
        if owner is not None:
            os.chown(files, *owner)  # keeps the mode: of a directory's, chown(2) clears no bit
        os.rename(temporary, f"{layout.snapshots}/{snapshot.id}")
    except BaseException:
        filetrees.remove_tree(Path(temporary))
        raise
