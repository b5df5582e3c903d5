"""The daemon itself: from exec to READY=1, and its resident memory when it does nothing."""

from __future__ import annotations

from collections.abc import Iterator

from lab import NixsnapDaemon, Workspace

from bench.closures import Closures
from bench.results import Series, Unit
from bench.settings import Settings

STARTS = 15


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """Start it several times, each with an empty root. What it weighs after work, the other benchmarks tell."""
    del closures
    ready: list[float] = []
    resident: list[float] = []
    for _ in range(1 + settings.rounds(STARTS)):
        daemon = NixsnapDaemon.start(workspace.subdirectory(), log_level="info")
        try:
            ready.append(daemon.ready_seconds)
            resident.append(daemon.resident_bytes())
        finally:
            daemon.destroy()
    # The first start may have had to read the interpreter and the libraries from disk.
    yield Series(name="daemon/ready", unit=Unit.SECONDS, samples=ready[1:])
    yield Series(name="memory/idle", unit=Unit.BYTES, samples=resident[1:])
