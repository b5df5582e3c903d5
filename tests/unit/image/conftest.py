"""Fixtures of the image tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from imagekit import FakeStore


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    """An empty store."""
    return FakeStore(tmp_path / "store")
