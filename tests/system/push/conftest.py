"""Fixtures of the push tests: a client that knows nothing yet, registries, and archives to push."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Workspace

# Images written with the standard library; the unit tier uses them as well.
sys.path.insert(0, str(Path(__file__).parents[2] / "unit/image"))

from certificates import Authority
from pushable import BIG_BYTES, write_archive
from registries import (
    Client,
    Registry,
    build_resuming_registry,
    need_programs,
    start_docker_registry,
    start_resuming_registry,
)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small image for amd64."""
    return write_archive(tmp_path / "small.tar")


@pytest.fixture
def big_archive(tmp_path: Path) -> Path:
    """An image with a layer of `BIG_BYTES` that nobody else has."""
    return write_archive(tmp_path / "big.tar", big_bytes=BIG_BYTES)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """A client that knows no registry and no password."""
    (tmp_path / "client").mkdir()
    return Client.create(tmp_path / "client")


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Registry]]:
    """Starts a docker-registry with what is added to its configuration; one a test, unless it stops them."""
    started: list[Registry] = []

    def start_one(**settings: object) -> Registry:
        started.append(start_docker_registry(directory / f"registry{len(started)}", **settings))
        return started[-1]

    yield start_one
    for registry in started:
        registry.stop()


@pytest.fixture
def registry(start: Callable[..., Registry]) -> Registry:
    """A docker-registry without TLS or passwords."""
    return start()


@pytest.fixture(scope="session")
def resuming_program(workspace: Workspace) -> Path:
    """The registry in `chunks`, built."""
    return build_resuming_registry(workspace.subdirectory())


@pytest.fixture
def resuming_registry(directory: Path, resuming_program: Path) -> Iterator[Registry]:
    """A registry that can resume uploads."""
    registry = start_resuming_registry(directory / "resuming", resuming_program)
    yield registry
    registry.stop()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A certificate authority that nobody knows."""
    need_programs("openssl")
    return Authority.create(tmp_path / "authority")
