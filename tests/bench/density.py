"""Many containers at a time: their mounts, the next start beside them, and taking them down."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator

import attrs
from lab import Workspace, mounts_below
from lab.processes import wait_until

from bench.bed import Bed, Image
from bench.closures import Closures
from bench.results import Series, Unit
from bench.sampling import interleaved, seconds
from bench.settings import Settings

CONTAINERS = 30
PATHS = 1000
ROUNDS = 4
STARTS = 5
"""Samples of the next start in each round, of each image."""

Samples = defaultdict[str, list[float]]


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """In every round: nothing running, then many plain containers, then as many of the Nix image."""
    units = {"mounts": Unit.MOUNTS}
    with Bed.started(workspace.subdirectory(), settings) as bed:
        images = {"plain": bed.plain_image(), "nix": bed.nix_image(closures.of(PATHS))}
        samples: Samples = defaultdict(list)
        _sample_next_starts(bed, images, samples, beside="nothing", rounds=1)  # dropped: it warms up
        samples.clear()
        for _ in range(1 if settings.quick else ROUNDS):
            _sample_next_starts(bed, images, samples, beside="nothing", rounds=settings.rounds(STARTS))
            for kind, image in images.items():
                crowd = _Crowd(bed=bed, image=image)
                samples[f"start-all-{kind}"].append(seconds(functools.partial(crowd.start, CONTAINERS)))
                samples[f"mounts-{kind}"].append(crowd.mounts_each())
                _sample_next_starts(bed, images, samples, beside=kind, rounds=settings.rounds(STARTS))
                samples[f"teardown-{kind}"].append(seconds(crowd.remove))
        for name, taken in samples.items():
            unit = units.get(name.partition("-")[0], Unit.SECONDS)
            yield Series(name=f"density/{name}", unit=unit, samples=taken)


def _sample_next_starts(
    bed: Bed, images: dict[str, Image], samples: Samples, *, beside: str, rounds: int
) -> None:
    variants = {kind: functools.partial(bed.start_to_exit, image) for kind, image in images.items()}
    for kind, taken in interleaved(variants, rounds=rounds, warm_up=False).items():
        samples[f"next-{kind}-beside-{beside}"] += taken


@attrs.define(kw_only=True, eq=False)
class _Crowd:
    """Containers of one image that run at the same time."""

    bed: Bed
    image: Image
    _ids: list[str] = attrs.field(factory=list, init=False)
    _mounts_before: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._mounts_before = self._mounts()

    def start(self, count: int) -> None:
        """Start that many, one after the other."""
        for _ in range(count):
            self._ids.append(self.bed.start_sleeper(self.image))

    def mounts_each(self) -> float:
        """The mounts that each brought to the host."""
        return (self._mounts() - self._mounts_before) / len(self._ids)

    def remove(self) -> None:
        """Kill and remove all, and return when containerd and the snapshotter have nothing of them any more.

        One `ctr` process a step and not one a container: those would take longer than what is measured.
        """
        self.bed.containerd.ctr("task", "rm", "--force", *self._ids)
        self.bed.containerd.ctr("container", "rm", *self._ids)
        self.bed.containerd.collect_garbage()
        wait_until(lambda: self._mounts() <= self._mounts_before, what="end of the containers' mounts")

    def _mounts(self) -> int:
        """The host's mounts that are this bed's: others come and go on a machine that does more than this."""
        return len(mounts_below(self.bed.directory))
