"""Start to exit of a container with a user namespace of its own, by the size of its closure, beside the plain image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from lab import Workspace

from bench.bed import Bed, Image
from bench.closures import Closures
from bench.results import Series, Unit
from bench.sampling import interleaved
from bench.settings import Settings

SIZES = (1, 200, 1000)
ROUNDS = 31
FIRST_IDS = (100_000, 200_000)
"""What root is outside, by turns: each start has other ids than the one before it, and shares the image with it."""


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """What `start` measures, with `--uidmap`, `--gidmap` and `--remap-labels`.

    containerd's own snapshotter does likewise: it idmaps the layers of its overlay (from 2.0 on).
    """
    directory = workspace.subdirectory()
    for path in (directory, directory.parent):
        path.chmod(0o711)  # runc looks a container's root directory up with the mapped ids
    with Bed.started(directory, settings) as bed:
        plain = bed.plain_image()
        images = {"plain": plain, "plain-again": plain}
        images |= {f"nix-{size}": bed.nix_image(closures.of(size)) for size in SIZES}
        variants = {name: _starts(bed, image) for name, image in images.items()}
        for name, samples in interleaved(variants, rounds=settings.rounds(ROUNDS)).items():
            yield Series(name=f"userns/{name}", unit=Unit.SECONDS, samples=samples)


def _starts(bed: Bed, image: Image) -> Callable[[], float]:
    firsts = itertools.cycle(FIRST_IDS)

    def start() -> float:
        ids = f"0:{next(firsts)}:65536"
        return bed.start_to_exit(image, options=("--uidmap", ids, "--gidmap", ids, "--remap-labels"))

    return start
