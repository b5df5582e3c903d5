"""Start to exit of a container in a plain user's namespaces, by the size of its closure, beside the plain image."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from lab import Rootless, Workspace

from bench.bed import Bed
from bench.closures import Closures
from bench.results import Series, Unit
from bench.sampling import interleaved
from bench.settings import Settings

SIZES = (1, 200, 1000)
ROUNDS = 31


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """What `start` measures, under rootlesskit: every process runs as the user, ctr as well.

    Joining the namespaces (setpriv, nsenter) is in the figures of both sides.
    """
    directory = workspace.subdirectory()
    with (
        Rootless.start(directory) as rootless,
        Bed.started(rootless.subdirectory("bed"), settings, place=rootless) as bed,
    ):
        plain = bed.plain_image()
        images = {"plain": plain, "plain-again": plain}
        images |= {f"nix-{size}": bed.nix_image(closures.of(size)) for size in SIZES}
        variants = {name: functools.partial(bed.start_to_exit, image) for name, image in images.items()}
        for name, samples in interleaved(variants, rounds=settings.rounds(ROUNDS)).items():
            yield Series(name=f"rootless/{name}", unit=Unit.SECONDS, samples=samples)
