"""What containerd is given of a snapshot: mounts of its own, or those of a rootfs view that is mounted first."""

from __future__ import annotations

import logging

import attrs

from nixsnap.config import StoreView
from nixsnap.metadata.records import Kind, Snapshot
from nixsnap.metadata.store import Store
from nixsnap.snapshots.chain import Chain
from nixsnap.snapshots.idmapping import UID_MAPPING
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.mounter import ViewMounter
from nixsnap.snapshots.upkeep import Upkeep
from nixsnap.snapshots.views import Mounts, plan_plain, plan_view

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Presenter:
    """Says what shows a chain, and mounts that.

    Attributes:
        layout: Where files lie.
        store: The metadata.
        mounter: Mounts rootfs views.
        upkeep: Fetches again what somebody took out of the store.
        kind: The kind of rootfs view.
        overlay_options: What every overlay is mounted with.
        plain_options: What those of chains without a nix layer are mounted with beside that.
        map_plain: Map the ids of chains without a nix layer ourselves too, and do not leave it to containerd.
    """

    layout: Layout
    store: Store
    mounter: ViewMounter
    upkeep: Upkeep
    kind: StoreView
    overlay_options: tuple[str, ...]
    plain_options: tuple[str, ...] = ()
    map_plain: bool = False

    def has_view(self, chain: Chain) -> bool:
        """Whether the mount of a snapshot is a view of ours."""
        if chain.nix_layers:
            return True
        snapshot = chain.snapshot
        return self.map_plain and bool(snapshot.parent_ids) and UID_MAPPING in snapshot.labels

    def describe_plain(self, snapshot: Snapshot) -> Mounts:
        """What shows a snapshot that has no view."""
        options = (*self.overlay_options, *self.plain_options)
        idmap = not self.map_plain
        return (plan_plain(self.layout, snapshot, options=options, kind=self.kind, idmap=idmap),)

    def mount_view(self, chain: Chain) -> Mounts:
        """Mount the view of a snapshot unless it is; what shows it then.

        Raises:
            NixsnapError: A store path is gone, and cannot be had again.
            OSError: The kernel or the disk failed.
        """
        snapshot = chain.snapshot
        plan = plan_view(
            self.layout,
            snapshot,
            nix_layers=chain.nix_layers,
            kind=self.kind,
            store=self.mounter.store,
            options=self.overlay_options,
        )
        self.upkeep.ensure(chain.nix_layers)
        if self.mounter.up(plan, chain=snapshot.parent_ids, names_of=self._store_names):
            log.info("mounted rootfs view id=%d nix_layers=%d", snapshot.id, len(chain.nix_layers))
        readonly = snapshot.kind is Kind.VIEW
        return self.mounter.handed_out(plan, readonly=readonly, names_of=self._store_names)

    def _store_names(self, snapshot_id: int) -> tuple[str, ...]:
        with self.store.read() as tx:
            return tx.closures_of([snapshot_id])[snapshot_id].names
