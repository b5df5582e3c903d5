"""The daemon itself: from exec to READY=1, and its resident memory when it does nothing."""

from __future__ import annotations

from collections.abc import Iterator

from lab import NixsnapDaemon, Workspace

from bench.closures import Closures
from bench.fetching import pull
from bench.filesystem import fresh_file_system
from bench.results import Series, Unit
from bench.settings import Settings

STARTS = 15
LAYERS = 300
LAYER_PATHS = 200
STARTS_WITH_LAYERS = 5


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """Start it several times, each with an empty root. What it weighs after work, the other benchmarks tell."""
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
    yield _ready_with_layers(workspace, settings, closures)


def _ready_with_layers(workspace: Workspace, settings: Settings, closures: Closures) -> Series:
    """Start it with many nix layers, whose roots and store paths it looks at once it serves."""
    with fresh_file_system(workspace.subdirectory()) as directory:
        daemon = NixsnapDaemon.start(directory, log_level="info")
        ready: list[float] = []
        try:
            for number in range(LAYERS):
                pull(daemon, f"image-{number}", closures.of(LAYER_PATHS))
            for _ in range(settings.rounds(STARTS_WITH_LAYERS)):
                daemon.stop()
                daemon = NixsnapDaemon.start(directory, log_level="info")
                ready.append(daemon.ready_seconds)
        finally:
            daemon.destroy()
    return Series(name="daemon/ready-with-layers", unit=Unit.SECONDS, samples=ready)
