"""What the table shows: which series is set against which, and the target it is to reach."""

from __future__ import annotations

from enum import Enum

import attrs

from bench import build, cycles, daemon, density, fetching, load, reading, rootless, start, stubs, userns
from bench.results import Series


class Of(Enum):
    """What a target is about."""

    RATIO = "ratio"
    MEDIAN = "median"


@attrs.frozen(kw_only=True)
class Target:
    """A bound, in the series' unit where it is about the median.

    Attributes:
        limit: The bound.
        of: What it bounds: the median itself, or its ratio to that of the counterpart.
        at_least: It is a lower bound; otherwise an upper one.
    """

    limit: float
    of: Of
    at_least: bool = False

    def is_met(self, ours: Series, reference: Series | None) -> bool:
        """Whether the median, or the ratio of medians, is within the bound."""
        value = ours.median
        if self.of is Of.RATIO:
            if reference is None:
                raise ValueError(f"{ours.name}: a ratio of what to what?")
            value /= reference.median
        return value >= self.limit if self.at_least else value <= self.limit


@attrs.frozen(kw_only=True)
class Row:
    """A line of the table; one whose series were not measured is left out.

    Attributes:
        what: What was done.
        ours: Name of the series that is in question.
        reference: Name of its counterpart, measured in turn with it.
        against: What the counterpart is.
        target: What is to be reached.
    """

    what: str
    ours: str
    reference: str | None = None
    against: str = ""
    target: Target | None = None


@attrs.frozen(kw_only=True)
class Section:
    """A part of the table under a heading of its own."""

    title: str
    rows: tuple[Row, ...]


def _ratio(limit: float, *, at_least: bool = False) -> Target:
    return Target(limit=limit, of=Of.RATIO, at_least=at_least)


def _median(limit: float, *, at_least: bool = False) -> Target:
    return Target(limit=limit, of=Of.MEDIAN, at_least=at_least)


def _paths(count: int) -> str:
    return "1 path" if count == 1 else f"{count:,} paths"


PLAIN = "plain image, overlayfs"
MANY = density.CONTAINERS
LAYERED = "`ctr image import` of the same files in a layer, overlayfs"
CYCLES_WANTED = {1: 340, 4: 560}
PRESENT_WANTED = {1000: _median(0.4), 5000: _median(1.5)}
LOAD_WANTED = {(1000, form): PRESENT_WANTED[1000] for form in load.FORMS}
RELEASES = {"machine": "Debian 12's Nix (2.8)", "newer": "Debian 13's Nix (2.26)"}

START = Section(
    title="Start to exit: `ctr run --rm … true`",
    rows=(
        *(
            Row(
                what=f"Nix image, {_paths(size)}",
                ours=f"start/nix-{size}",
                reference="start/plain",
                against=PLAIN,
                target=_ratio(1.10),
            )
            for size in start.SIZES
        ),
        Row(
            what="plain image on nixsnap",
            ours="start/plain-on-nixsnap",
            reference="start/plain",
            against=PLAIN,
        ),
        Row(
            what="plain image on overlayfs once more (noise)",
            ours="start/plain-again",
            reference="start/plain",
            against=PLAIN,
        ),
    ),
)

ROOTLESS = Section(
    title="Start to exit in a plain user's namespaces (rootlesskit)",
    rows=(
        *(
            Row(
                what=f"Nix image, {_paths(size)}",
                ours=f"rootless/nix-{size}",
                reference="rootless/plain",
                against="plain image, rootless overlayfs",
                target=_ratio(1.15),
            )
            for size in rootless.SIZES
        ),
        Row(
            what="plain image on rootless overlayfs once more (noise)",
            ours="rootless/plain-again",
            reference="rootless/plain",
            against="plain image, rootless overlayfs",
        ),
    ),
)

USERNS = Section(
    title="Start to exit with a user namespace: `ctr run --rm --uidmap … --gidmap … --remap-labels … true`",
    rows=(
        *(
            Row(
                what=f"Nix image, {_paths(size)}",
                ours=f"userns/nix-{size}",
                reference="userns/plain",
                against="plain image, overlayfs, mapped likewise",
            )
            for size in userns.SIZES
        ),
        Row(
            what="plain image on overlayfs once more (noise)",
            ours="userns/plain-again",
            reference="userns/plain",
            against="plain image, overlayfs, mapped likewise",
        ),
    ),
)

DENSITY = Section(
    title=f"Density: {MANY} containers of {_paths(density.PATHS)} each running",
    rows=(
        Row(
            what="mounts a container brings to the host",
            ours="density/mounts-nix",
            reference="density/mounts-plain",
            against=f"{MANY} plain ones, overlayfs",
            target=_median(3),
        ),
        Row(
            what=f"starting the {MANY}",
            ours="density/start-all-nix",
            reference="density/start-all-plain",
            against=f"{MANY} plain ones, overlayfs",
        ),
        Row(
            what="next start of the Nix image",
            ours="density/next-nix-beside-nix",
            reference="density/next-plain-beside-plain",
            against=f"next plain start beside {MANY} plain ones",
            target=_ratio(1.15),
        ),
        Row(
            what="next start of the Nix image",
            ours="density/next-nix-beside-nix",
            reference="density/next-plain-beside-nothing",
            against="plain start with nothing running",
            target=_ratio(1.15),
        ),
        Row(
            what="next start of a plain image beside them",
            ours="density/next-plain-beside-nix",
            reference="density/next-plain-beside-plain",
            against=f"next plain start beside {MANY} plain ones",
        ),
        Row(
            what=f"killing and removing the {MANY}, until all is gone",
            ours="density/teardown-nix",
            reference="density/teardown-plain",
            against=f"{MANY} plain ones, overlayfs",
            target=_median(3.0),
        ),
    ),
)

CYCLES = Section(
    title="Snapshot life cycles: Prepare, Mounts, Commit, Stat, Remove",
    rows=tuple(
        row
        for clients in cycles.CLIENTS
        for row in (
            Row(
                what=f"{clients} client{'s'[: clients - 1]}",
                ours=f"cycles/nixsnap-{clients}",
                reference=f"cycles/overlayfs-{clients}",
                against="overlayfs, by containerd's socket",
                target=_median(CYCLES_WANTED[clients], at_least=True),
            ),
            Row(
                what=f"{clients} client{'s'[: clients - 1]}",
                ours=f"cycles/nixsnap-{clients}",
                reference=f"cycles/compared-{clients}",
                against="the daemon it was compared with",
                target=_ratio(1.0, at_least=True),
            ),
        )
    ),
)

BUILD = Section(
    title=f"Building an image of {_paths(build.PATHS)}: `nix2container build`",
    rows=(
        Row(
            what="from exec to exit",
            ours="build/nixsnap",
            reference="build/original",
            against="the Go original's",
            target=_median(1.0),
        ),
        Row(
            what="memory, at most",
            ours="build/memory-nixsnap",
            reference="build/memory-original",
            against="the Go original's",
            target=_median(100 * 2**20),
        ),
    ),
)

LOAD = Section(
    title="Loading an image whose store paths are all present: `nix2container load`",
    rows=tuple(
        Row(
            what=f"{_paths(size)}, {form} annotations",
            ours=f"load/nix-{size}-{form}",
            reference=f"load/layered-{size}",
            against=LAYERED,
            target=LOAD_WANTED.get((size, form)),
        )
        for size in load.SIZES
        for form in load.FORMS
    ),
)

PRESENT = Section(
    title="Pulling an image whose store paths are all present: Prepare and Commit of its layer, roots included",
    rows=tuple(
        Row(
            what=f"{_paths(size)}, {form} annotations",
            ours=f"present/{size}-{form}",
            target=PRESENT_WANTED.get(size),
        )
        for size in fetching.PRESENT_SIZES
        for form in load.FORMS
    ),
)


def _fetching_rows(release: str, name: str) -> tuple[Row, ...]:
    few, many = min(fetching.SIZES), max(fetching.SIZES)
    # A Nix that fetches one path after another anyway is no faster for being asked for all at once.
    parallel = _ratio(0.2) if release == "newer" else None
    return (
        *(
            Row(
                what=f"{name}: {_paths(size)}",
                ours=f"fetching/{release}-nixsnap-{size}",
                reference=f"fetching/{release}-bare-{size}",
                against="one `nix-store --realise` of all",
                target=_ratio(1.2),
            )
            for size in fetching.SIZES
        ),
        Row(
            what=f"{name}: {_paths(few)}",
            ours=f"fetching/{release}-nixsnap-{few}",
            reference=f"fetching/{release}-one-by-one-{few}",
            against="`nix-store --realise` of one after the other",
            target=parallel,
        ),
        Row(
            what=f"{name}: {fetching.CLIENTS} clients, one image of {_paths(few)}",
            ours=f"fetching/{release}-ten-{few}",
            reference=f"fetching/{release}-nixsnap-{few}",
            against="one client",
            target=_ratio(1.1),
        ),
        Row(
            what=f"{name}: Mounts of another snapshot while {_paths(many)} are fetched",
            ours=f"fetching/{release}-mounts-busy",
            reference=f"fetching/{release}-mounts-idle",
            against="with nothing else to do",
            target=_median(0.005),
        ),
    )


FETCHING = Section(
    title=f"Fetching into an empty store from a cache {fetching.DELAY_SECONDS * 1000:.0f} ms away",
    rows=tuple(row for release, name in RELEASES.items() for row in _fetching_rows(release, name)),
)

READING = Section(
    title=f"Opening and reading a small file in each of {_paths(reading.PATHS)} in a container",
    rows=tuple(
        Row(
            what=f"{which} in a container",
            ours=f"reading/{name}-nix",
            reference=f"reading/{name}-layered",
            against="the same files in a layer, overlayfs",
        )
        for name, which in (("first", "first time"), ("later", "every later time"))
    ),
)

DAEMON = Section(
    title="The daemon",
    rows=(
        Row(what="from exec to READY=1", ours="daemon/ready", target=_median(0.4)),
        Row(
            what=f"the same, with {daemon.LAYERS} nix layers of {_paths(daemon.LAYER_PATHS)} each",
            ours="daemon/ready-with-layers",
            target=_median(0.4),
        ),
        Row(what="resident memory, idle after its start", ours="memory/idle", target=_median(48 * 2**20)),
        Row(what="resident memory, after the life cycles above", ours="memory/after-cycles"),
        Row(what="resident memory, after the loads above", ours="memory/after-load"),
        Row(what="resident memory, after the pulls of present paths above", ours="memory/after-present"),
    ),
)

STUBS = Section(
    title=f"Stub layers of `data-only` views: a closure of {stubs.PATHS} paths with {stubs.FILES:,} files",
    rows=(
        Row(what="the first", ours="stubs/first", target=_median(1.0)),
        Row(
            what=f"another closure of as many files, {stubs.SHARED:.0%} of them the same",
            ours="stubs/second",
            reference="stubs/first",
            against="the first",
        ),
    ),
)

SECTIONS = (
    START,
    ROOTLESS,
    USERNS,
    DENSITY,
    CYCLES,
    BUILD,
    LOAD,
    PRESENT,
    FETCHING,
    READING,
    DAEMON,
    STUBS,
)
