"""Making stub layers for data-only views: a file for each file of a closure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import Workspace

from bench.closures import Closures
from bench.filesystem import fresh_file_system
from bench.results import Series, Unit
from bench.sampling import interleaved, seconds
from bench.settings import Settings
from nixsnap.config import StoreView
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.stubs import StubMaker

PATHS = 200
FILES_EACH = 100
FILES = PATHS * FILES_EACH
SHARED = 0.9
ROUNDS = 7

_DIRECTORIES_EACH = 10


def measure(workspace: Workspace, settings: Settings, _closures: Closures) -> Iterator[Series]:
    """The first stub layer of a closure, and that of another closure, of as many files, which shares nine tenths of it.

    Each round has a root of its own, and nothing is deleted in between (see `fresh_file_system`).
    """
    with fresh_file_system(workspace.subdirectory()) as directory, ThreadPoolExecutor(1) as executor:
        store = directory / "store"
        names = _make_store(store, PATHS + int(PATHS * (1 - SHARED)))
        first, second = names[:PATHS], names[-PATHS:]
        roots = (directory / f"root-{number}" for number in itertools.count())
        makers: list[StubMaker] = []

        def make_first() -> float:
            makers.append(_maker(next(roots), store, executor))
            return seconds(lambda: makers[-1].ensure(1, names=first, chain=[1]))

        def make_second() -> float:
            maker = _maker(next(roots), store, executor)
            maker.ensure(1, names=first, chain=[1])
            return seconds(lambda: maker.ensure(2, names=second, chain=[2]))

        variants = {"first": make_first, "second": make_second}
        for name, samples in interleaved(variants, rounds=settings.rounds(ROUNDS)).items():
            yield Series(name=f"stubs/{name}", unit=Unit.SECONDS, samples=samples)


def _maker(root: Path, store: Path, executor: ThreadPoolExecutor) -> StubMaker:
    layout = Layout(root)
    layout.make()
    return StubMaker(
        layout=layout,
        kind=StoreView.DATA_ONLY,
        store=store,
        store_dir=Path("/nix/store"),
        userxattr=True,
        keep_ids=False,
        executor=executor,
    )


def _make_store(store: Path, paths: int) -> list[str]:
    """Store paths as packages have them: some directories, names and lengths as of a library in Python."""
    names = [f"{number:032}-package-{number}-1.0" for number in range(paths)]
    for name in names:
        for number in range(_DIRECTORIES_EACH):
            directory = store / name / f"lib/python3.11/site-packages/module{number}"
            directory.mkdir(parents=True)
            for file in range(FILES_EACH // _DIRECTORIES_EACH):
                (directory / f"part_of_the_module_{file}.py").write_bytes(b"x" * (100 + 10 * file))
    return names
