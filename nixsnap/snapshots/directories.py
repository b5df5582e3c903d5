"""The directories of one snapshot."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from nixsnap.errors import DataLossError
from nixsnap.mounts import filetrees
from nixsnap.snapshots.chain import Chain
from nixsnap.snapshots.idmapping import parse_mapping
from nixsnap.snapshots.layout import TEMPORARY_PREFIX, Layout

# Modes as containerd's overlayfs snapshotter makes them (prepareDirectory in plugins/snapshots/overlay/overlay.go).
_FILES_MODE: Final = 0o755
_WORK_MODE: Final = 0o711


def make(layout: Layout, chain: Chain) -> None:
    """Make the directory of a new snapshot: complete, or not at all.

    Args:
        layout: Where it goes.
        chain: The snapshot and what it lies upon; its root directory gets owner and mode of its parent's, or belongs to
            the root of the ids that its labels map it to.

    Raises:
        DataLossError: The parent's directory is gone.
        OSError: The disk is full.
    """
    snapshot = chain.snapshot
    # Strings, not Path objects: each Prepare comes through here while all other writers wait, and joining paths took
    # half of the time.
    temporary = f"{layout.snapshots}/{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    files = f"{temporary}/fs"
    try:
        os.mkdir(temporary, 0o700)
        os.mkdir(files, _FILES_MODE)
        if chain.has_plain_work:
            os.mkdir(f"{temporary}/work", _WORK_MODE)
        if snapshot.parent_ids:
            # overlayfs shows the upper layer's root, so without this a container could not enter a root directory that
            # a base image gave to another owner.
            parent = _parent_root(layout, snapshot.parent_ids[0])
            os.chown(files, parent.st_uid, parent.st_gid)
            os.chmod(files, stat.S_IMODE(parent.st_mode))
        mapping = parse_mapping(snapshot.labels)
        if mapping is not None:
            os.chown(files, *mapping.root)  # keeps the mode: of a directory's, chown(2) clears no bit
        os.rename(temporary, f"{layout.snapshots}/{snapshot.id}")
    except BaseException:
        filetrees.remove_tree(Path(temporary))
        raise


def remove(layout: Layout, snapshot_id: int) -> None:
    """Remove the directory of a snapshot whose row is gone, if it is there.

    It gets another name first: the row may come back in a power cut, and must not find what is left of the files.

    Raises:
        OSError: Not all of it could be removed; the sweep tries again.
    """
    removed = layout.removed(snapshot_id)
    with contextlib.suppress(FileNotFoundError):
        os.rename(layout.snapshot(snapshot_id), removed)
        filetrees.remove_tree(removed)


def _parent_root(layout: Layout, parent_id: int) -> os.stat_result:
    files = layout.upper(parent_id)
    try:
        return os.lstat(files)
    except FileNotFoundError as exc:
        raise DataLossError(
            f"the files of the parent snapshot are gone: {files} is not there",
            hint="remove what uses its image, and pull that again",
        ) from exc
