"""What a snapshot lies upon, and what that makes of it."""

from __future__ import annotations

from typing import Self

import attrs

from nixsnap.metadata.reader import Reader
from nixsnap.metadata.records import Kind, Snapshot


@attrs.frozen(kw_only=True)
class Chain:
    """An active snapshot or a view, and the ids of the nix layers that it lies upon.

    A snapshot that is a nix layer itself shows nothing of the store: it exists to be unpacked into.
    """

    snapshot: Snapshot
    nix_layers: frozenset[int]

    @classmethod
    def read(cls, tx: Reader, snapshot: Snapshot) -> Self:
        """Look the nix layers up."""
        found = tx.nix_layers((snapshot.id, *snapshot.parent_ids)) if snapshot.parent_ids else ()
        return cls(snapshot=snapshot, nix_layers=frozenset(() if snapshot.id in found else found))

    @property
    def has_plain_work(self) -> bool:
        """Whether its own directory holds a work directory: only an overlay has one, a rootfs view's lies elsewhere."""
        snapshot = self.snapshot
        return snapshot.kind is Kind.ACTIVE and bool(snapshot.parent_ids) and not self.nix_layers
