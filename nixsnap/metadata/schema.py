"""The schema's version: making a new file, upgrading an older one, refusing what is newer or not ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Final

from nixsnap.errors import FailedPreconditionError
from nixsnap.metadata.connection import Connection

SCHEMA_VERSION: Final = 1
"""The version that schema.sql makes."""

MIGRATIONS: Final[Mapping[int, str]] = {}
"""SQL that leads from the version that is its key to the next. schema.sql changes along with it."""

# PRAGMA application_id in schema.sql.
_APPLICATION_ID: Final = 0x6E697873


def ensure_schema(
    connection: Connection, *, version: int = SCHEMA_VERSION, migrations: Mapping[int, str] = MIGRATIONS
) -> None:
    """Make the schema in an empty file, or upgrade an older one, in one transaction.

    Args:
        connection: A connection outside of a transaction.
        version: What to lead to, `SCHEMA_VERSION` but in tests.
        migrations: The steps from each version before to the next.

    Raises:
        FailedPreconditionError: The file is another program's, or a newer nixsnap's.
    """
    if read_version(connection, newest=version) == version:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = read_version(connection, newest=version)  # again, for another process may have been faster
        if found == 0:
            _run(connection, resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8"))
        for step in range(found or SCHEMA_VERSION, version):
            _run(connection, migrations[step])
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    finally:
        connection.rollback()


def read_version(connection: Connection, *, newest: int = SCHEMA_VERSION) -> int:
    """The schema version of the file; 0 if it is empty.

    Raises:
        FailedPreconditionError: The file is another program's, or of a version above `newest`.
        DataLossError: The file is damaged or no database.
    """
    version = _pragma(connection, "user_version")
    if _pragma(connection, "application_id") != _APPLICATION_ID:
        if version or connection.fetch_one("SELECT 1 FROM sqlite_schema LIMIT 1"):
            raise FailedPreconditionError(
                f"metadata {connection.path} is a database of another program",
                hint="move it away, or choose another root",
            )
        return 0
    if not 0 < version <= newest:
        raise FailedPreconditionError(
            f"metadata {connection.path} has schema version {version}, and this nixsnap knows up to version {newest}",
            hint="run the nixsnap that wrote it or a newer one",
        )
    return version


def _run(connection: Connection, script: str) -> None:
    """Run a script statement by statement, for `executescript` would commit the transaction first."""
    for statement in _statements(script):
        connection.execute(statement)


def _statements(script: str) -> Iterator[str]:
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _pragma(connection: Connection, name: str) -> int:
    row = connection.fetch_one(f"PRAGMA {name}")
    return int(row[0]) if row else 0
