"""Loading an image whose store paths are all present, beside importing the same files as an ordinary image."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

from lab import Closure, Workspace, build_image, load_image

from bench.bed import OVERLAYFS, Bed
from bench.closures import Closures
from bench.filesystem import fresh_file_system
from bench.layered import build_layered_image
from bench.results import Series, Unit
from bench.sampling import Sample, interleaved, seconds
from bench.settings import Settings

SIZES = (1000, 5000)
FORMS = ("closure", "legacy")
"""How the layer names its store paths; see docs/image-format.md."""
ROUNDS = 5
REFERENCE = "bench.invalid/load:1"
ISOLATED_CONTENT = """
[plugins.'io.containerd.metadata.v1.bolt']
content_sharing_policy = "isolated"
"""
"""Otherwise a blob that another namespace has need not be sent."""

_namespaces = (f"load-{number}" for number in itertools.count(1))


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """`nix2container load` and `ctr image import`, as whole processes, each into a new, empty namespace.

    Nothing is removed until the end: see `fresh_file_system`.
    """
    with (
        fresh_file_system(workspace.subdirectory()) as directory,
        Bed.started(directory, settings, containerd_config=ISOLATED_CONTENT) as bed,
    ):
        variants: dict[str, Sample] = {}
        for size in SIZES:
            variants |= _variants(bed, closures.of(size), size)
        for name, samples in interleaved(variants, rounds=settings.rounds(ROUNDS)).items():
            yield Series(name=f"load/{name}", unit=Unit.SECONDS, samples=samples)
        yield Series(name="memory/after-load", unit=Unit.BYTES, samples=[bed.nixsnap.resident_bytes()])


def _variants(bed: Bed, closure: Closure, size: int) -> dict[str, Sample]:
    variants: dict[str, Sample] = {}
    for form in FORMS:
        archive = bed.directory / f"{form}-{size}.tar"
        build_image(closure, archive, reference=REFERENCE, options=("--annotations", form))
        variants[f"nix-{size}-{form}"] = functools.partial(_load, bed, archive)
    archive = build_layered_image(closure, bed.directory / f"layered-{size}.tar", reference=REFERENCE)
    variants[f"layered-{size}"] = functools.partial(_import, bed, archive)
    return variants


def _load(bed: Bed, archive: Path) -> float:
    namespace = next(_namespaces)
    return seconds(lambda: load_image(bed.containerd, archive, namespace=namespace))


def _import(bed: Bed, archive: Path) -> float:
    command = ("image", "import", "--snapshotter", OVERLAYFS, archive)
    namespace = next(_namespaces)
    return seconds(lambda: bed.containerd.ctr(*command, namespace=namespace))
