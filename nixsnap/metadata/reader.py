"""Questions to the metadata store, asked within one transaction: they all see the same moment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final

from nixsnap.errors import FailedPreconditionError, NotFoundError
from nixsnap.metadata.connection import Connection, Row
from nixsnap.metadata.filters import parse_filters
from nixsnap.metadata.records import Closure, Info, Kind, Snapshot, Usage

_RECORD: Final = """
SELECT s.id, s.key, p.key, s.kind, s.labels, s.created_ns, s.updated_ns, s.inodes, s.size_bytes
FROM snapshot AS s LEFT JOIN snapshot AS p ON p.id = s.parent_id
"""
_RECORD_BY_KEY: Final = _RECORD + "WHERE s.key = ?"
_RECORD_BY_ID: Final = _RECORD + "WHERE s.id = ?"
_RECORDS_AFTER: Final = _RECORD + "WHERE s.key > ? ORDER BY s.key LIMIT ?"

IDENTITY: Final = "SELECT id, kind, parent_id FROM snapshot WHERE key = ?"

_SNAPSHOT: Final = "SELECT id, kind, parent_id, labels FROM snapshot WHERE key = ?"

_CHAIN: Final = """
WITH RECURSIVE chain (depth, id, parent_id) AS (
  SELECT 0, id, parent_id FROM snapshot WHERE id = ?
  UNION ALL
  SELECT depth + 1, s.id, s.parent_id FROM chain JOIN snapshot AS s ON s.id = chain.parent_id
)
SELECT id FROM chain ORDER BY depth
"""

_CLOSURES: Final = """
SELECT snapshot_id, closure_info, inferred, store_paths FROM closure
WHERE snapshot_id IN (SELECT value FROM json_each(?))
"""

_NIX_LAYERS: Final = """
SELECT snapshot_id FROM closure WHERE snapshot_id IN (SELECT value FROM json_each(?))
"""

_PAGE: Final = 100

_KINDS: Final = tuple(Kind)


class Reader:
    """A consistent view of the store; of no use after the block or operation that it was given to."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, key: str) -> tuple[int, Info, Usage]:
        """The id, description and stored usage (zero until Commit) of the snapshot with this key or name.

        Raises:
            NotFoundError: There is none.
        """
        row = self._one(_RECORD_BY_KEY, key)
        return row[0], _info(row), Usage(inodes=row[7], size_bytes=row[8])

    def get_snapshot(self, key: str) -> Snapshot:
        """The active or view snapshot with this key, and its ancestors.

        Raises:
            NotFoundError: There is none.
            FailedPreconditionError: It is committed.
        """
        snapshot_id, kind, parent_id, labels = self._one(_SNAPSHOT, key)
        if kind == Kind.COMMITTED:
            raise FailedPreconditionError(f"snapshot {key!r} is committed, neither active nor view")
        return Snapshot(
            id=snapshot_id,
            kind=_KINDS[kind],
            parent_ids=self._chain(parent_id),
            labels=decode_labels(labels),
        )

    def chain(self, key: str) -> tuple[int, ...]:
        """The ids of the snapshot with this key or name, of any kind, and of its ancestors, nearest first.

        Raises:
            NotFoundError: There is none.
        """
        return self._chain(self._one(IDENTITY, key)[0])

    def closures_of(self, snapshot_ids: Iterable[int]) -> dict[int, Closure]:
        """The closures of those among these snapshots that are nix layers, by snapshot id."""
        rows = self._connection.fetch_all(_CLOSURES, (json.dumps(list(snapshot_ids)),))
        return {row[0]: _closure(row) for row in rows}

    def nix_layers(self, snapshot_ids: Iterable[int]) -> set[int]:
        """Those among these snapshots that are nix layers; much cheaper than reading their closures."""
        rows = self._connection.fetch_all(_NIX_LAYERS, (json.dumps(list(snapshot_ids)),))
        return {row[0] for row in rows}

    def walk(self, filters: Iterable[str] = ()) -> Iterator[Info]:
        """The snapshots that any of the filters lets pass (all, without a filter), in bytewise order of their keys.

        Rows are fetched a page at a time, so that memory stays bounded; all are of the reader's moment. A reader
        that lives long keeps the write-ahead log growing: to serve a client of unknown patience, use
        `Store.walk_blocks`.

        Raises:
            InvalidArgumentError: A filter is malformed; raised by this call, not by the first step.
        """
        return filter(parse_filters(filters).matches, map(_info, self._pages()))

    def infos(self, snapshot_ids: Iterable[int]) -> Iterator[Info]:
        """The snapshots with these ids, in the order given; those that do not exist are passed over."""
        for snapshot_id in snapshot_ids:
            row = self._connection.fetch_one(_RECORD_BY_ID, (snapshot_id,))
            if row is not None:
                yield _info(row)

    def ids(self) -> set[int]:
        """The ids of all snapshots."""
        return {row[0] for row in self._connection.fetch_all("SELECT id FROM snapshot")}

    def ids_in_key_order(self) -> list[int]:
        """The ids of all snapshots, in bytewise order of their keys."""
        return [row[0] for row in self._connection.fetch_all("SELECT id FROM snapshot ORDER BY key")]

    def _pages(self) -> Iterator[Row]:
        last = ""
        while rows := self._connection.fetch_all(_RECORDS_AFTER, (last, _PAGE)):
            yield from rows
            last = rows[-1][1]

    def _chain(self, snapshot_id: int | None) -> tuple[int, ...]:
        if snapshot_id is None:
            return ()
        return tuple(row[0] for row in self._connection.fetch_all(_CHAIN, (snapshot_id,)))

    def _one(self, sql: str, key: str) -> Row:
        row = self._find(sql, key)
        if row is None:
            raise NotFoundError(f"snapshot {key!r} does not exist")
        return row

    def _find(self, sql: str, key: str) -> Row | None:
        try:
            return self._connection.fetch_one(sql, (key,))
        except UnicodeEncodeError:  # a command line may hold bytes that are no UTF-8; no key does
            return None


def decode_labels(text: str | None) -> dict[str, str]:
    """The labels that a row holds."""
    return json.loads(text) if text else {}


def _info(row: Row) -> Info:
    return Info(
        name=row[1],
        parent=row[2] or "",
        kind=_KINDS[row[3]],
        labels=decode_labels(row[4]),
        created_ns=row[5],
        updated_ns=row[6],
    )


def _closure(row: Row) -> Closure:
    return Closure(
        snapshot_id=row[0], closure_info=row[1], inferred=bool(row[2]), store_paths=tuple(row[3].split("\n"))
    )
