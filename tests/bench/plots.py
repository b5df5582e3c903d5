"""Results as plots: SVG files that are the same, byte for byte, for the same results and the same matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import cycles, density, start
from bench.results import Results, Series

NIX_COLOUR = "#5277c3"
PLAIN_COLOUR = "#9a9a9a"
COMPARED_COLOUR = "#d08770"
# Any: what matplotlib declares for it differs from release to release.
STYLE: Any = {
    "svg.hashsalt": "nixsnap",  # ids in the file come from this and not from a random number
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
NO_DATES = {"Date": None, "Creator": None}

Bars = Mapping[str, tuple[str, Sequence[Series]]]
"""For each entry of the legend its colour and a series for each group of bars."""


@attrs.frozen(kw_only=True)
class Plot:
    """A plot and the benchmark it is about."""

    benchmark: str
    paint: Callable[[Results, Axes], None]


def draw(results: Results, directory: Path) -> list[Path]:
    """Write a file `bench-BENCHMARK.svg` for every plot whose benchmark was run; return the files."""
    written = []
    for plot in (
        Plot(benchmark="start", paint=_start),
        Plot(benchmark="density", paint=_density),
        Plot(benchmark="cycles", paint=_cycles),
    ):
        if not any(name.startswith(f"{plot.benchmark}/") for name in results.series):
            continue
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(7, 3.6), layout="constrained")
            plot.paint(results, figure.add_subplot())
            file = directory / f"bench-{plot.benchmark}.svg"
            figure.savefig(file, format="svg", metadata=NO_DATES)
        written.append(file)
    return written


def _start(results: Results, axes: Axes) -> None:
    """Start time against closure size; the plain image, whose closure has none, is a band across."""
    plain = results.series["start/plain"]
    nix = [results.series[f"start/nix-{size}"] for size in start.SIZES]
    places = range(len(nix))
    axes.axhspan(plain.low * 1000, plain.high * 1000, color=PLAIN_COLOUR, alpha=0.2, linewidth=0)
    axes.axhline(plain.median * 1000, color=PLAIN_COLOUR, label="plain image on containerd's overlayfs")
    axes.errorbar(
        places,
        [series.median * 1000 for series in nix],
        yerr=_errors(nix, scale=1000),
        color=NIX_COLOUR,
        marker="o",
        capsize=4,
        label="Nix image on nixsnap",
    )
    axes.set_xticks(places, [f"{size:,}" for size in start.SIZES])
    axes.set_xlabel("store paths in the closure")
    axes.set_ylabel("ms, start to exit")
    axes.set_title("A container's start, by the size of its closure (median, smallest, largest)", fontsize=10)
    _from_zero(axes)


def _density(results: Results, axes: Axes) -> None:
    """The next start, by what runs beside it."""
    besides = {
        "nothing": "nothing",
        "plain": f"{density.CONTAINERS} plain containers",
        "nix": f"{density.CONTAINERS} containers\nof {density.PATHS:,} paths",
    }
    bars = {
        label: (colour, [results.series[f"density/next-{kind}-beside-{beside}"] for beside in besides])
        for kind, label, colour in (
            ("plain", "plain image on overlayfs", PLAIN_COLOUR),
            ("nix", f"Nix image, {density.PATHS:,} paths", NIX_COLOUR),
        )
    }
    _grouped(axes, bars, groups=list(besides.values()), scale=1000)
    axes.set_xlabel("running beside it")
    axes.set_ylabel("ms, start to exit")
    axes.set_title("The next start on a full node (median, smallest, largest)", fontsize=10)


def _cycles(results: Results, axes: Axes) -> None:
    """Life cycles a second, by the number of clients."""
    candidates = (
        ("nixsnap", "nixsnap", NIX_COLOUR),
        ("overlayfs", "containerd's overlayfs", PLAIN_COLOUR),
        ("compared", "the compared daemon", COMPARED_COLOUR),
    )
    bars = {
        label: (colour, [results.series[f"cycles/{name}-{clients}"] for clients in cycles.CLIENTS])
        for name, label, colour in candidates
        if name != "compared" or f"cycles/{name}-{cycles.CLIENTS[0]}" in results.series
    }
    groups = [f"{clients} client{'s'[: clients - 1]}" for clients in cycles.CLIENTS]
    _grouped(axes, bars, groups=groups, scale=1)
    axes.set_ylabel("cycles a second")
    axes.set_title("Prepare, Mounts, Commit, Stat, Remove (median, smallest, largest)", fontsize=10)


def _grouped(axes: Axes, bars: Bars, *, groups: Sequence[str], scale: float) -> None:
    """Draw groups of bars side by side, each bar a median with its spread."""
    width = 0.8 / len(bars)
    for position, (label, (colour, series)) in enumerate(bars.items()):
        places = [group + (position - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(
            places,
            [one.median * scale for one in series],
            width * 0.94,
            yerr=_errors(series, scale=scale),
            capsize=3,
            color=colour,
            label=label,
            ecolor="#444444",
        )
    axes.set_xticks(range(len(groups)), groups)
    _from_zero(axes)


def _errors(series: Iterable[Series], *, scale: float) -> list[list[float]]:
    """The distances from the medians down to the smallest and up to the largest samples."""
    pairs = [((one.median - one.low) * scale, (one.high - one.median) * scale) for one in series]
    return [[down for down, _ in pairs], [up for _, up in pairs]]


def _from_zero(axes: Axes) -> None:
    """Heights that can be compared by eye, with room for the legend above."""
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.25)
    axes.legend(frameon=False, loc="upper left", ncols=3)
