"""Opening and reading a thousand small files of the store in a container."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lab import Workspace, run

from bench.bed import Bed, Image
from bench.closures import Closures
from bench.results import Series, Unit
from bench.settings import Settings

PATHS = 1000
ROUNDS = 11
PASSES = 20
READER = Path(__file__).with_name("reader.py")


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """The same files in a Nix image and in an ordinary image's layer, by turns, in a new container each time.

    The first pass in a container finds no directory entry of its overlay in the kernel's cache; later ones
    find all. The files' content is in the page cache throughout.
    """
    closure = closures.of(PATHS)
    files = [f"{path}/share/f" for path in closure.paths if (Path(path) / "share/f").exists()]
    samples: defaultdict[str, list[float]] = defaultdict(list)
    with Bed.started(workspace.subdirectory(), settings) as bed:
        images = {"layered": bed.layered_image(closure), "nix": bed.nix_image(closure)}
        for number in range(1 + settings.rounds(ROUNDS)):
            for name in images if number % 2 else reversed(images):
                first, later = _read_in_container(bed, images[name], files)
                samples[f"first-{name}"].append(first)
                samples[f"later-{name}"].append(later)
    for name, taken in samples.items():
        # The first round, which warms up, is dropped.
        yield Series(name=f"reading/{name}", unit=Unit.SECONDS, samples=taken[1:])


def _read_in_container(bed: Bed, image: Image, files: list[str]) -> tuple[float, float]:
    """Seconds of the first pass over the files in a new container, and the median of the later ones."""
    container = bed.start_sleeper(image)
    try:
        root = f"/proc/{bed.process_of(container)}/root"
        first, *later = json.loads(
            run(sys.executable, "-I", READER, root, str(1 + PASSES), stdin="\n".join(files)).stdout
        )
    finally:
        bed.containerd.remove_container(container)
        bed.containerd.collect_garbage()
    return first, statistics.median(later)
