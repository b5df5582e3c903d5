"""The facts without which figures say nothing."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
from pathlib import Path

from lab import CommandError, Workspace, mounts, run

from bench.settings import Settings


def describe(workspace: Workspace, settings: Settings) -> dict[str, str]:
    """Machine, kernel, versions and date, by the name they are to be shown with."""
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPUs ({_cpu()}), {_memory_gib():.0f} GiB, {platform.machine()}",
        "kernel": platform.release(),
        "file system": _file_system(workspace.path),
        "containerd": settings.installation.version,
        "runc": _version("runc", "--version"),
        "Nix": _version("nix-store", "--version"),
        "Python": f"{platform.python_version()}, grpcio {importlib.metadata.version('grpcio')}",
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "run": "quick: too few samples for figures" if settings.quick else "full",
    }


def _version(*command: str) -> str:
    found = re.search(r"\d+\.\d+\S*", run(*command).stdout)
    if not found:
        raise CommandError(f"{command[0]} does not say its version")
    return found[0]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return "unknown CPU"


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _file_system(path: Path) -> str:
    """The type of the file system that all state of a run lies on."""
    holding = [mount for mount in mounts() if path.is_relative_to(mount.point)]
    return max(holding, key=lambda mount: len(mount.point.parts)).fs_type
