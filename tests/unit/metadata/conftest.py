"""Fixtures of the metadata store's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nixsnap.metadata import Kind, Store, Usage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file goes."""
    return tmp_path / "metadata.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """An empty store."""
    store = Store.open(path)
    yield store
    store.close()


@pytest.fixture
def populated(store: Store) -> Store:
    """A store of committed base <- committed top, and on them: active on base, work and view on top; active alone."""

    def populate(writer):
        for name, parent in [("base", ""), ("top", "base")]:
            writer.create(Kind.ACTIVE, "extract", parent)
            writer.commit_active("extract", name, Usage(inodes=3, size_bytes=4096))
        writer.create(Kind.ACTIVE, "alone")
        writer.create(Kind.ACTIVE, "on-base", "base")
        writer.create(Kind.ACTIVE, "on-top", "top")
        writer.create(Kind.VIEW, "view", "top")

    store.write(populate)
    return store
