"""What all tests of nixsnap.mounts share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import open_descriptors

from nixsnap.mounts import filetrees


@pytest.fixture(autouse=True)
def no_descriptor_stays_open() -> Iterator[None]:
    """Every test here, of success or failure, is a test that no descriptor leaks."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A directory for large trees, on tmpfs if there is one to write to; pytest itself cannot remove deep ones."""
    shared = Path("/dev/shm")
    directory = Path(
        tempfile.mkdtemp(prefix="nixsnap-", dir=shared if os.access(shared, os.W_OK) else tmp_path)
    )
    yield directory
    filetrees.remove_tree(directory)
