"""What the metadata store holds, as values: kinds, snapshot records, usage, closures."""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterable, Mapping

import attrs


class Kind(enum.IntEnum):
    """What a snapshot is; numbered as containerd's `snapshots.Kind`, in bbolt and so in SQLite."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@attrs.frozen(kw_only=True)
class Info:
    """What a client may know of a snapshot."""

    name: str
    """The key of an active or view snapshot, the name of a committed one."""

    parent: str = ""
    """The name of the committed snapshot it lies upon; empty at the bottom of a chain."""

    kind: Kind
    """Active, view or committed."""

    labels: Mapping[str, str] = attrs.field(factory=dict)
    """Labels without empty values."""

    created_ns: int = 0
    """Nanoseconds since 1970 UTC of Prepare, View or Commit, whichever was last."""

    updated_ns: int = 0
    """Nanoseconds since 1970 UTC of the last write of its labels."""


@attrs.frozen(kw_only=True)
class Usage:
    """The disk space of one snapshot's own layer, parents not counted."""

    inodes: int = 0
    """Inodes, a hard-linked file once."""

    size_bytes: int = 0
    """Allocated bytes."""


@attrs.frozen(kw_only=True)
class Snapshot:
    """An active or view snapshot and what it lies upon: all that deciding its mounts needs of the store."""

    id: int
    """Names the snapshot's directories."""

    kind: Kind
    """Active or view."""

    parent_ids: tuple[int, ...] = ()
    """The ids of its ancestors, nearest first."""

    labels: Mapping[str, str] = attrs.field(factory=dict)
    """Its labels, some of which ask for mounts of a special kind."""


def _sorted_unique(store_paths: Iterable[str]) -> tuple[str, ...]:
    paths = tuple(store_paths)
    if all(
        map(operator.lt, paths, paths[1:])
    ):  # as they come from the database; a tenth of the time of sorting
        return paths
    return tuple(sorted(set(paths)))


@attrs.frozen(kw_only=True)
class Closure:
    """The store paths that one nix layer names."""

    snapshot_id: int
    """The nix layer."""

    closure_info: str | None = None
    """The store path of the closureInfo output that lists the closure, if one was named."""

    store_paths: tuple[str, ...] = attrs.field(converter=_sorted_unique)
    """The store paths, sorted, each once."""

    inferred: bool = False
    """Whether the closure was read off the layer's files, because no annotation named it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the store paths, without the store directory."""
        return tuple(path.rpartition("/")[2] for path in self.store_paths)
