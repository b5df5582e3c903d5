"""Snapshot life cycles a second: Prepare, Mounts, Commit, Stat, Remove, without a container."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lab import Workspace, run
from lab.cache import LAB_DIRECTORY

from bench.bed import NIX, OVERLAYFS, Bed
from bench.closures import Closures
from bench.results import Series, Unit
from bench.sampling import interleaved
from bench.settings import Settings

CLIENTS = (1, 4)
ROUNDS = 7
SECONDS = 3.0
CONFORMANCE = Path(__file__).resolve().parents[1] / "conformance"


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """The cycles of nixsnap's socket, of overlayfs through containerd's socket, and of a third if one is given.

    overlayfs is a part of containerd, so its figure includes containerd's own metadata store; nothing is
    nearer to it from outside.
    """
    del closures  # there are no containers here
    program = _build_cyclebench(workspace.path / "cyclebench")
    with Bed.started(workspace.subdirectory(), settings) as bed:
        sockets = {"nixsnap": (bed.nixsnap.address, NIX), OVERLAYFS: (bed.containerd.address, OVERLAYFS)}
        if settings.compare_socket:
            sockets["compared"] = (settings.compare_socket, NIX)
        for clients in CLIENTS:
            variants = {
                name: functools.partial(
                    _cycles_per_second,
                    program,
                    socket,
                    snapshotter=snapshotter,
                    clients=clients,
                    duration=0.5 if settings.quick else SECONDS,
                )
                for name, (socket, snapshotter) in sockets.items()
            }
            # cyclebench warms up by itself
            taken = interleaved(variants, rounds=settings.rounds(ROUNDS), warm_up=False)
            for name, samples in taken.items():
                yield Series(name=f"cycles/{name}-{clients}", unit=Unit.PER_SECOND, samples=samples)
        yield Series(name="memory/after-cycles", unit=Unit.BYTES, samples=[bed.nixsnap.resident_bytes()])


def _cycles_per_second(
    program: Path, socket: Path, *, snapshotter: str, clients: int, duration: float
) -> float:
    said = run(
        program, "-address", socket, "-snapshotter", snapshotter,
        "-clients", str(clients), "-seconds", str(duration),
    ).stdout  # fmt: skip
    return float(json.loads(said)["cycles_per_second"])


def _build_cyclebench(program: Path) -> Path:
    """Build tests/conformance/cmd/cyclebench; FileNotFoundError when there is no Go."""
    run(
        _go(), "-C", CONFORMANCE, "build", "-o", program, "./cmd/cyclebench",
        timeout_seconds=1200,
        environment={"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
    )  # fmt: skip
    return program


def _go() -> str | Path:
    """The go command: what NIXSNAP_GO names, else what packaging/test unpacked (for want of one), else PATH's."""
    unpacked = sorted(LAB_DIRECTORY.glob("go/usr/lib/go-*/bin/go"))
    found = os.environ.get("NIXSNAP_GO") or (unpacked[-1] if unpacked else shutil.which("go"))
    if not found:
        raise FileNotFoundError("the cycles need Go: set NIXSNAP_GO, or run packaging/test, which brings it")
    return found
