"""Fixtures of the registry tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "image"))

from fakeregistry import FakeRegistry, running

from nixsnap.registry.credentials import DockerConfig
from nixsnap.registry.endpoint import Endpoint, default_endpoint
from nixsnap.registry.progress import Outcome
from nixsnap.registry.retry import Clock
from nixsnap.registry.session import Session
from nixsnap.registry.transport import Transport


@attrs.define
class Heard:
    """Progress that remembers."""

    announced: list[tuple[int, int]] = attrs.field(factory=list)
    offsets: list[int] = attrs.field(factory=list)
    outcomes: dict[str, Outcome] = attrs.field(factory=dict)
    retries: list[str] = attrs.field(factory=list)

    def pushing(self, blobs: int, size_bytes: int) -> None:
        self.announced.append((blobs, size_bytes))

    def reached(self, _digest: str, offset_bytes: int, _size_bytes: int) -> None:
        self.offsets.append(offset_bytes)

    def finished(self, digest: str, _size_bytes: int, outcome: Outcome) -> None:
        self.outcomes[digest] = outcome

    def retrying(self, reason: str) -> None:
        self.retries.append(reason)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    """A registry that fails on cue."""
    with running() as registry:
        yield registry


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def config(tmp_path: Path) -> DockerConfig:
    """Docker's configuration of someone who has none."""
    return DockerConfig(tmp_path / "no-config.json")


@pytest.fixture
def open_session(heard: Heard, config: DockerConfig) -> Iterator[Callable[..., Session]]:
    """Opens sessions whose pauses are short; for the repository `team/app` if nobody says otherwise."""
    transports: list[Transport] = []

    def open_one(registry: str, *, repository: str = "team/app", **settings: object) -> Session:
        docker = settings.pop("config", config)
        endpoint: Endpoint = attrs.evolve(default_endpoint(registry, plain_http=True), **settings)
        transports.append(Transport(endpoint, connections=2))
        return Session(
            endpoint,
            repository,
            transport=transports[-1],
            config=docker,
            clock=Clock(unit_seconds=0.001),
            progress=heard,
        )

    yield open_one
    for transport in transports:
        transport.close()


@pytest.fixture
def session(fake: FakeRegistry, open_session: Callable[..., Session]) -> Session:
    """A session with the registry that fails on cue."""
    return open_session(fake.host)
