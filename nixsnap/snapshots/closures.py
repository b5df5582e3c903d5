"""The closures of nix layers: present and rooted before a snapshot is a nix layer, and given up with it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import attrs

from nixsnap.metadata.records import Closure
from nixsnap.mounts import filetrees
from nixsnap.nix import roots
from nixsnap.nix.caller import Caller
from nixsnap.nix.realise import ClosureRequest, Realiser
from nixsnap.nix.storepath import StorePath
from nixsnap.snapshots.fetches import Fetches
from nixsnap.snapshots.inference import infer_closure
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.stubs import StubMaker

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Closures:
    """Has the closures of nix layers made, and gives them up.

    Attributes:
        layout: Where roots and layers lie.
        realiser: Makes closures present.
        stubs: Makes stub layers.
        store_dir: Where containers see the store.
        are_inferred: Recognise nix layers by their content.
        fetches: What is being fetched now, by key.
    """

    layout: Layout
    realiser: Realiser
    stubs: StubMaker
    store_dir: Path
    are_inferred: bool
    fetches: Fetches = attrs.field(factory=Fetches)

    def realise(
        self,
        request: ClosureRequest,
        snapshot_id: int,
        *,
        key: str,
        caller: Caller | None,
        inferred: bool = False,
    ) -> Closure:
        """Make a closure present, and root it for a snapshot. If that fails, the caller discards what there is of it.

        Raises:
            CancelledError: The caller went away.
            NixsnapError, OSError: Nix or the disk failed.
        """
        log.info("realising %s key=%r id=%d", request, key, snapshot_id)
        gcroots = self.layout.gcroot(snapshot_id)
        with self.fetches.under_way(key) as progress:
            store_paths = self.realiser.realise(request, gcroots=gcroots, progress=progress, caller=caller)
        roots.seal(gcroots)
        log.info("realised %d store paths key=%r id=%d", len(store_paths), key, snapshot_id)
        return Closure(
            snapshot_id=snapshot_id,
            closure_info=None if request.closure_info is None else str(request.closure_info),
            store_paths=map(str, store_paths),
            inferred=inferred,
        )

    def infer(self, snapshot_id: int, *, below: Collection[Closure]) -> tuple[str, ...] | None:
        """The names of the store paths that a layer's content names, if it shows that it is a nix layer.

        Args:
            snapshot_id: The layer, of which nothing says that it is one.
            below: The closures of its ancestors.
        """
        if not self.are_inferred:
            return None
        return infer_closure(
            self.layout.upper(snapshot_id),
            store_dir=self.store_dir,
            shown={name for closure in below for name in closure.names},
        )

    def realise_inferred(
        self, snapshot_id: int, names: Sequence[str], *, key: str, caller: Caller | None
    ) -> Closure:
        """As `realise`, of what `infer` found; nothing is left of it if it fails."""
        log.info(
            "inferred a nix layer from its content store_paths=%d key=%r id=%d", len(names), key, snapshot_id
        )
        store_dir = str(self.store_dir)
        store_paths = tuple(StorePath(store_dir=store_dir, name=name) for name in names)
        try:
            request = ClosureRequest(store_paths=store_paths)
            return self.realise(request, snapshot_id, key=key, caller=caller, inferred=True)
        except BaseException:
            self.discard(snapshot_id)
            raise

    def discard(self, snapshot_id: int) -> None:
        """Remove what making a snapshot a nix layer left on disk."""
        self.stubs.remove(snapshot_id)
        self.discard_roots(snapshot_id)

    def discard_roots(self, snapshot_id: int) -> None:
        """The same, where there are no stub layers yet."""
        filetrees.remove_tree(self.layout.gcroot(snapshot_id))
