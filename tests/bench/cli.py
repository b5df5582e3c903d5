"""The command line: run benchmarks, show and keep their results."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lab import Workspace, containerd_series, newest_containerd

from bench import (
    build,
    cycles,
    daemon,
    density,
    environment,
    fetching,
    load,
    reading,
    rootless,
    start,
    stubs,
    table,
    userns,
)
from bench.closures import Closures
from bench.results import Results, Series
from bench.settings import Settings

Benchmark = Callable[[Workspace, Settings, Closures], Iterator[Series]]

BENCHMARKS: dict[str, Benchmark] = {
    "start": start.measure,
    "rootless": rootless.measure,
    "userns": userns.measure,
    "density": density.measure,
    "cycles": cycles.measure,
    "build": build.measure,
    "load": load.measure,
    "present": fetching.measure_present,
    "fetching": fetching.measure,
    "reading": reading.measure,
    "daemon": daemon.measure,
    "stubs": stubs.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the arguments say; the table goes to standard output, progress to standard error."""
    arguments = _parser().parse_args(argv)
    results = Results.read(arguments.render) if arguments.render else _measure(arguments)
    markdown = table.render(results)
    print(markdown)
    if arguments.docs:
        from bench import plots  # noqa: PLC0415 - matplotlib is needed here only

        table.replace_in(arguments.docs / "benchmarks.md", markdown)
        plots.draw(results, arguments.docs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Measure nixsnap beside containerd's own overlayfs snapshotter."
    )
    parser.add_argument("--quick", action="store_true", help="few samples: to see that everything works")
    parser.add_argument(
        "--only", action="append", choices=sorted(BENCHMARKS), help="this one alone; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIRECTORY",
        help="put the table into benchmarks.md and the plots beside it",
    )
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="measure nothing; show what --json wrote earlier"
    )
    parser.add_argument(
        "--containerd", metavar="SERIES", help='"1.6", "1.7" or "2" (default: the newest here)'
    )
    parser.add_argument(
        "--compare-socket",
        type=Path,
        metavar="SOCKET",
        help="run the cycles against this snapshotter daemon as well, which must be running",
    )
    return parser


def _measure(arguments: argparse.Namespace) -> Results:
    if os.geteuid() != 0:
        raise SystemExit("run.py: needs root, for mounts and containers")
    settings = _settings(arguments)
    series: list[Series] = []
    with Workspace.create() as workspace, Closures.temporary() as closures:
        facts = environment.describe(workspace, settings)
        for name in arguments.only or BENCHMARKS:
            _say(f"{name} …")
            started = time.monotonic()
            series += BENCHMARKS[name](workspace, settings, closures)
            _say(f"{name}: {time.monotonic() - started:.0f} s")
            if arguments.json:  # after each, so that a failure later on loses nothing
                Results.of(facts, series).write(arguments.json)
    return Results.of(facts, series)


def _settings(arguments: argparse.Namespace) -> Settings:
    if arguments.containerd is None:
        installation = newest_containerd()
    else:
        found = containerd_series(arguments.containerd)
        if found is None:
            raise SystemExit(f"run.py: this machine lacks containerd {arguments.containerd}")
        installation = found
    return Settings(installation=installation, quick=arguments.quick, compare_socket=arguments.compare_socket)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
