"""Snapshots without a directory: what a power cut may leave, and only that.

Making and removing the directories of snapshots is not synced: a sync of a directory commits the journal of the whole
file system, as long as all else that a Prepare does takes. (containerd's own snapshotters do not sync them either.) Nor
is the deletion of a row (`Store.write`). So after a power cut there may be

- an active snapshot or a view that was made just before. Whatever was written into it is as little there;
- a committed snapshot that was unpacked and committed just before;
- a snapshot that was just removed. containerd does not know it any more, and when it collects garbage removes it again.

A directory is there whole or not at all, whichever way: it is renamed into its place, and out of it before its files go
(`directories`), and journals keep the order of what they hold.
"""

from __future__ import annotations

import logging

from nixsnap.errors import NixsnapError
from nixsnap.metadata.records import Kind
from nixsnap.metadata.store import Store
from nixsnap.snapshots import directories
from nixsnap.snapshots.chain import Chain
from nixsnap.snapshots.layout import Layout

log = logging.getLogger(__name__)


def restore(layout: Layout, store: Store) -> None:
    """Make the directories of active snapshots and views again, empty, and say which committed ones are lost.

    For start-up, while no call goes on.

    Raises:
        OSError: The directory of all snapshots cannot be read.
    """
    present = {layout.owner_of(path) for path in layout.snapshots.iterdir()}
    with store.read() as tx:
        lost = list(tx.infos(sorted(tx.ids() - present)))
        chains = [
            Chain.read(tx, tx.get_snapshot(info.name)) for info in lost if info.kind is not Kind.COMMITTED
        ]
    for info in lost:
        if info.kind is Kind.COMMITTED:
            log.error(
                "the files of a committed snapshot are gone, as after a power cut; unless it was being removed then, "
                "remove what lies upon it and pull its image again name=%r",
                info.name,
            )
    for chain in chains:
        _make_again(layout, chain)


def _make_again(layout: Layout, chain: Chain) -> None:
    snapshot = chain.snapshot
    try:
        directories.make(layout, chain)
    except (NixsnapError, OSError) as exc:
        log.warning("cannot make the directory of a snapshot again id=%d error=%s", snapshot.id, exc)
    else:
        log.warning("made the directory of a snapshot again, which a power cut took id=%d", snapshot.id)
