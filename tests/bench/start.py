"""Start to exit of a container, by the size of its closure, beside the plain image."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from lab import Workspace

from bench.bed import Bed
from bench.closures import Closures
from bench.results import Series, Unit
from bench.sampling import interleaved
from bench.settings import Settings

SIZES = (1, 200, 1000, 5000)
ROUNDS = 31


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """`ctr run --rm … true` of every image in turn.

    The plain image is measured twice, as if it were two: what these differ by is noise. It is also measured
    on nixsnap, where the difference is the price of a proxy snapshotter as such.
    """
    with Bed.started(workspace.subdirectory(), settings) as bed:
        plain = bed.plain_image()
        images = {"plain": plain, "plain-again": plain, "plain-on-nixsnap": bed.plain_image_on_nixsnap()}
        images |= {f"nix-{size}": bed.nix_image(closures.of(size)) for size in SIZES}
        variants = {name: functools.partial(bed.start_to_exit, image) for name, image in images.items()}
        for name, samples in interleaved(variants, rounds=settings.rounds(ROUNDS)).items():
            yield Series(name=f"start/{name}", unit=Unit.SECONDS, samples=samples)
