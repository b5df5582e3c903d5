"""Changes to the metadata store: those of containerd's bbolt metastore, with its errors in its order."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

import attrs

from nixsnap.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NixsnapError,
    NotFoundError,
)
from nixsnap.metadata.compensations import Compensations
from nixsnap.metadata.connection import Connection
from nixsnap.metadata.reader import IDENTITY, Reader
from nixsnap.metadata.records import Closure, Info, Kind, Snapshot, Usage

MAX_KEY_BYTES: Final = 32768
"""The longest key, name and label name: bbolt's limit, so that an export can hold them."""

_ALLOCATE: Final = "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'snapshot' RETURNING seq"

_INSERT: Final = """
INSERT INTO snapshot (id, key, kind, parent_id, labels, created_ns, updated_ns) VALUES (?, ?, ?, ?, ?, ?, ?)
RETURNING id
"""

_PUT_CLOSURE: Final = """
INSERT INTO closure (snapshot_id, closure_info, inferred, store_paths) VALUES (?, ?, ?, ?)
ON CONFLICT (snapshot_id) DO UPDATE
SET closure_info = excluded.closure_info, inferred = excluded.inferred, store_paths = excluded.store_paths
"""

_COMMIT: Final = """
UPDATE snapshot
SET key = ?, kind = ?, parent_id = ?, labels = ?, created_ns = ?, updated_ns = ?, inodes = ?, size_bytes = ?
WHERE id = ?
"""

_encode_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Writer(Reader):
    """What an operation given to `Store.write` may do; it sees its own changes and those of operations before it."""

    def __init__(self, connection: Connection, compensations: Compensations) -> None:
        super().__init__(connection)
        self._compensations = compensations

    def on_rollback(self, compensate: Callable[[], object]) -> None:
        """Have `compensate` called, if the operation or its whole batch is rolled back.

        What was registered last is called first. What it raises is logged and goes no further.
        """
        self._compensations.add(compensate)

    def allocate_id(self) -> int:
        """Spend an id: no snapshot will have it but one made by `create(id=…)`."""
        row = self._connection.fetch_one(_ALLOCATE)
        assert row is not None  # noqa: S101 - schema.sql puts the row
        return int(row[0])

    def create(
        self,
        kind: Kind,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        *,
        id: int | None = None,  # noqa: A002 - the schema's word
    ) -> Snapshot:
        """Add an active or view snapshot.

        Args:
            kind: Active or view.
            key: Its key, at most `MAX_KEY_BYTES` of UTF-8.
            parent: The name of a committed snapshot, or empty.
            labels: Its labels; those with an empty value are dropped.
            id: An id from `allocate_id`; a fresh one by default.

        Raises:
            InvalidArgumentError: The kind, key or a label is not allowed, or the parent is not committed.
            NotFoundError: There is no such parent.
            AlreadyExistsError: The key is taken.
        """
        if kind not in {Kind.ACTIVE, Kind.VIEW}:
            raise InvalidArgumentError(
                f"snapshot {key!r}: only active and view snapshots are created, not {kind.name}"
            )
        parent_id = self._committed_id(parent, InvalidArgumentError) if parent else None
        _check_key("snapshot key", key)
        now = time.time_ns()
        try:
            row = self._connection.fetch_one(
                _INSERT, (id, key, kind, parent_id, _encode_labels(labels), now, now)
            )
        except sqlite3.IntegrityError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                raise
            raise AlreadyExistsError(f"snapshot {key!r} already exists") from exc
        assert row is not None  # noqa: S101 - an insert that succeeds returns its row
        kept = {name: value for name, value in (labels or {}).items() if value}
        return Snapshot(id=row[0], kind=kind, parent_ids=self._chain(parent_id), labels=kept)

    def put_closure(self, closure: Closure) -> None:
        """Make a snapshot a nix layer, or replace its closure. The closure goes when the snapshot does.

        Raises:
            InvalidArgumentError: There is no store path, or one is empty or holds a line break.
            NotFoundError: There is no such snapshot.
        """
        text = "\n".join(closure.store_paths)
        if not text or not all(closure.store_paths) or text.count("\n") != len(closure.store_paths) - 1:
            raise InvalidArgumentError(
                f"closure of snapshot {closure.snapshot_id}: not a list of store paths"
            )
        row = (closure.snapshot_id, closure.closure_info, closure.inferred, text)
        try:
            self._connection.execute(_PUT_CLOSURE, row)
        except sqlite3.IntegrityError as exc:
            raise NotFoundError(f"snapshot {closure.snapshot_id} does not exist") from exc

    def commit_active(
        self,
        key: str,
        name: str,
        usage: Usage,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> int:
        """Turn an active snapshot into a committed one, which keeps its id and closure, and return the id.

        Args:
            key: The active snapshot; the key is free afterwards.
            name: The committed snapshot's name, at most `MAX_KEY_BYTES` of UTF-8.
            usage: The disk space of its layer.
            labels: Its labels; those of the active snapshot are not inherited.
            parent: A committed snapshot to put beneath one that has no parent; else empty, or the parent that it has.

        Raises:
            AlreadyExistsError: The name is taken (said first, even when there is no such key).
            InvalidArgumentError: The name or a label is not allowed, or it has another parent.
            NotFoundError: There is no such key or parent.
            FailedPreconditionError: The snapshot is not active, or the parent is not committed.
        """
        _check_key("snapshot name", name)
        if self._find(IDENTITY, name):
            raise AlreadyExistsError(f"committed snapshot {name!r}: a snapshot of that name or key exists")
        snapshot_id, kind, parent_id = self._one(IDENTITY, key)
        if kind != Kind.ACTIVE:
            raise FailedPreconditionError(f"snapshot {key!r} is not active")
        if parent:
            parent_id = self._rebased(key, parent_id, parent)
        now = time.time_ns()
        columns = (name, Kind.COMMITTED, parent_id, _encode_labels(labels), now, now)
        self._connection.execute(_COMMIT, (*columns, usage.inodes, usage.size_bytes, snapshot_id))
        return int(snapshot_id)

    def remove(self, key: str) -> tuple[int, Kind]:
        """Remove a snapshot of any kind, and its closure; return what its id and kind were.

        Raises:
            NotFoundError: There is none.
            FailedPreconditionError: It is the parent of another.
        """
        snapshot_id, kind, _ = self._one(IDENTITY, key)
        try:
            self._connection.execute("DELETE FROM snapshot WHERE id = ?", (snapshot_id,))
        except sqlite3.IntegrityError as exc:
            raise FailedPreconditionError(f"snapshot {key!r} cannot be removed: it has children") from exc
        return snapshot_id, Kind(kind)

    def update(self, info: Info, fieldpaths: Collection[str] = ()) -> Info:
        """Change labels of the snapshot named `info.name`, and return it as it is then.

        Args:
            info: The new labels; nothing else of it is looked at.
            fieldpaths: `labels` for all of them, `labels.NAME` for one, which goes if `info` has no value for it;
                without any path all of them are replaced.

        Raises:
            NotFoundError: There is no such snapshot.
            InvalidArgumentError: Another field is named, or a label is not allowed.
        """
        snapshot_id, found, _ = self.get(info.name)
        wanted = _masked_labels(found, info.labels, fieldpaths or ("labels",))
        labels = {name: value for name, value in wanted.items() if value}
        updated = attrs.evolve(found, labels=labels, updated_ns=time.time_ns())
        self._connection.execute(
            "UPDATE snapshot SET labels = ?, updated_ns = ? WHERE id = ?",
            (_encode_labels(labels), updated.updated_ns, snapshot_id),
        )
        return updated

    def _rebased(self, key: str, parent_id: int | None, parent: str) -> int:
        """The id of the parent to commit upon; a snapshot that has a parent keeps it."""
        if parent_id is None:
            if parent == key:
                raise NotFoundError(f"snapshot {key!r} cannot become its own parent")
            return self._committed_id(parent, FailedPreconditionError)
        named = self._find(IDENTITY, parent)
        if named is None or named[0] != parent_id:
            raise InvalidArgumentError(
                f"snapshot {key!r} has a parent, which a commit cannot change to {parent!r}"
            )
        return parent_id

    def _committed_id(self, parent: str, error: type[NixsnapError]) -> int:
        """The id of a snapshot that must be committed, else `error`."""
        row = self._find(IDENTITY, parent)
        if row is None:
            raise NotFoundError(f"parent {parent!r} does not exist")
        if row[1] != Kind.COMMITTED:
            raise error(f"parent {parent!r} is not committed")
        return int(row[0])


def _masked_labels(found: Info, wanted: Mapping[str, str], fieldpaths: Collection[str]) -> dict[str, str]:
    labels = dict(found.labels)
    for path in fieldpaths:
        field, dot, name = path.partition(".")
        if field != "labels":
            raise InvalidArgumentError(f"field {path!r} of snapshot {found.name!r} cannot be updated")
        if dot:
            labels[name] = wanted.get(name, "")
        else:
            labels = dict(wanted)
    return labels


def _check_key(what: str, key: str) -> None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError as exc:
        raise InvalidArgumentError(f"{what} {key!r} is not UTF-8") from exc
    if not 0 < size <= MAX_KEY_BYTES:
        raise InvalidArgumentError(f"{what} must have 1 to {MAX_KEY_BYTES} bytes, not {size}")


def _encode_labels(labels: Mapping[str, str] | None) -> str | None:
    kept = {name: value for name, value in (labels or {}).items() if value}
    if not kept:
        return None
    for name in kept:
        _check_key("label name", name)
    text = _encode_json(kept)
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgumentError("a label value is not UTF-8") from exc
    return text
