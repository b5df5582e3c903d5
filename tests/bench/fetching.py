"""Fetching closures from a binary cache that is some way off, beside bare Nix."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import attrs
import grpc
from lab import Closure, NixsnapDaemon, Workspace, run
from lab.binarycache import BinaryCache
from lab.nixes import RELEASES, NixRelease, nix_release

from bench.closures import Closures
from bench.filesystem import fresh_file_system
from bench.load import FORMS
from bench.results import Series, Unit
from bench.sampling import Sample, interleaved, seconds
from bench.settings import Settings
from nixsnap.api import snapshots_pb2, snapshots_pb2_grpc

SIZES = (100, 1000)
DELAY_SECONDS = 0.05
CLIENTS = 10
PRESENT_SIZES = (1000, 5000, 10_000)
PRESENT_ROUNDS = 5
ROUNDS = {100: 5, 1000: 3}
_PREPARE_SECONDS = 600
_LABEL = "containerd.io/snapshot/"

_numbers = itertools.count(1)


def measure(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """Each sample fills an empty store: nixsnap by a Prepare, Nix by one call for all paths, and by one for each.

    The machine's own Nix and the newer one in turn, since only the latter fetches in parallel.
    """
    directory = workspace.subdirectory()
    cache = BinaryCache(directory=directory / "cache")
    _publish(cache, [closures.of(size) for size in (1, *SIZES)])
    cache.delay_seconds = DELAY_SECONDS
    with cache:
        for name in RELEASES:
            release = nix_release(name, directory)
            if release is None:
                raise FileNotFoundError(f"this machine lacks the {name} Nix; packaging/test brings it")
            yield from _of_release(_Site(directory, cache, release), name, settings, closures)


@attrs.frozen
class _Site:
    """Where stores are made, and what fills them."""

    directory: Path
    cache: BinaryCache
    release: NixRelease

    def environment(self, place: Path) -> dict[str, str]:
        """That of a Nix which knows this cache alone, and has never asked it for anything."""
        environment = self.release.environment(os.environ["PATH"])
        settings = environment["NIX_CONFIG"].replace("substituters =", f"substituters = {self.cache.url}")
        return environment | {
            "NIX_CONFIG": f"{settings}require-sigs = false\n",
            "XDG_CACHE_HOME": str(place / "xdg"),
        }

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A directory with an empty store, on a file system where nothing was ever deleted; gone afterwards."""
        directory = self.directory / f"fetch-{next(_numbers)}"
        directory.mkdir()
        with fresh_file_system(directory) as place:
            run(self.release.bin / "nix-store", "--store", place / "store", "--init")
            yield place
        shutil.rmtree(directory)

    def bare(self, closure: Closure, *, one_by_one: bool) -> float:
        """Seconds of `nix-store --realise`; one by one, each after what it refers to."""
        paths = [*sorted(closure.paths, key=lambda path: path == closure.top), closure.info]
        with self.place() as place:
            realise = functools.partial(
                run,
                self.release.bin / "nix-store", "--store", place / "store", "--realise",
                environment=self.environment(place),
                timeout_seconds=_PREPARE_SECONDS,
            )  # fmt: skip
            if one_by_one:
                return seconds(lambda: [realise(path) for path in paths])
            return seconds(lambda: realise(*paths))

    @contextmanager
    def daemon(self) -> Iterator[NixsnapDaemon]:
        """A nixsnap with an empty store."""
        with self.place() as place:
            config = f'store_root = "{place}/store"\n[image_service]\nenable = false\n'
            daemon = NixsnapDaemon.start(
                place, config=config, log_level="info", environment=self.environment(place)
            )
            try:
                yield daemon
            finally:
                daemon.destroy()

    def pull(self, closure: Closure, *, clients: int = 1) -> float:
        """Seconds until all clients, who want the same image at once, have its layer."""
        self.cache.requests.clear()
        with self.daemon() as daemon, ThreadPoolExecutor(clients) as pool:
            names = [f"image-{number}" for number in range(clients)]
            took = seconds(lambda: list(pool.map(lambda name: pull(daemon, name, closure), names)))
        if len(self.cache.nars) != len(closure.paths) + 1:
            raise AssertionError(f"{len(self.cache.nars)} fetches of {len(closure.paths) + 1} store paths")
        return took


def pull(daemon: NixsnapDaemon, name: str, closure: Closure, *, form: str = "closure") -> None:
    """Make an image's nix layer, as an unpacker does; `form` is that of its annotations."""
    with grpc.insecure_channel(f"unix://{daemon.address}") as channel:
        snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        labels = {f"{_LABEL}nix-closure": closure.info}
        if form == "legacy":
            labels = {f"{_LABEL}nix-store-path.{i}": path for i, path in enumerate(closure.paths)}
        snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(key=f"extract {name}", labels=labels),
            timeout=_PREPARE_SECONDS,
        )
        snapshots.Commit(snapshots_pb2.CommitSnapshotRequest(name=name, key=f"extract {name}"))


def _present(daemon: NixsnapDaemon, closure: Closure, form: str) -> float:
    """Seconds of a pull with nothing to fetch; it is removed again, untimed."""
    name = f"image-{next(_numbers)}"
    took = seconds(lambda: pull(daemon, name, closure, form=form))
    with grpc.insecure_channel(f"unix://{daemon.address}") as channel:
        snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(key=name))
    return took


def measure_present(workspace: Workspace, settings: Settings, closures: Closures) -> Iterator[Series]:
    """Pulls of images whose store paths the machine's own store has, with the machine's own Nix."""
    with fresh_file_system(workspace.subdirectory()) as directory:
        daemon = NixsnapDaemon.start(directory, log_level="info")
        try:
            variants: dict[str, Sample] = {
                f"{size}-{form}": functools.partial(_present, daemon, closures.of(size), form)
                for size in PRESENT_SIZES
                for form in FORMS
            }
            for name, samples in interleaved(variants, rounds=settings.rounds(PRESENT_ROUNDS)).items():
                yield Series(name=f"present/{name}", unit=Unit.SECONDS, samples=samples)
            yield Series(name="memory/after-present", unit=Unit.BYTES, samples=[daemon.resident_bytes()])
        finally:
            daemon.destroy()


def _of_release(site: _Site, name: str, settings: Settings, closures: Closures) -> Iterator[Series]:
    for size in SIZES:
        closure = closures.of(size)
        rounds = settings.rounds(ROUNDS[size])
        variants: dict[str, Sample] = {
            "nixsnap": functools.partial(site.pull, closure),
            "bare": functools.partial(site.bare, closure, one_by_one=False),
        }
        if size == min(SIZES):
            variants["ten"] = functools.partial(site.pull, closure, clients=CLIENTS)
            variants["one-by-one"] = functools.partial(site.bare, closure, one_by_one=True)
        for variant, samples in interleaved(variants, rounds=rounds, warm_up=False).items():
            yield Series(name=f"fetching/{name}-{variant}-{size}", unit=Unit.SECONDS, samples=samples)
    yield from _responsiveness(site, name, closures)


def _responsiveness(site: _Site, name: str, closures: Closures) -> Iterator[Series]:
    """Mounts of a container's snapshot, with nothing else to do and then while the largest closure is fetched."""
    with site.daemon() as daemon, grpc.insecure_channel(f"unix://{daemon.address}") as channel:
        pull(daemon, "small", closures.of(1))
        snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(key="container", parent="small"))

        def mounts() -> float:
            return seconds(lambda: snapshots.Mounts(snapshots_pb2.MountsRequest(key="container")))

        idle = [mounts() for _ in range(500)]
        fetch = threading.Thread(target=pull, args=(daemon, "large", closures.of(max(SIZES))))
        fetch.start()
        busy = []
        while fetch.is_alive():
            busy.append(mounts())
            fetch.join(0.01)
        yield Series(name=f"fetching/{name}-mounts-idle", unit=Unit.SECONDS, samples=idle)
        yield Series(name=f"fetching/{name}-mounts-busy", unit=Unit.SECONDS, samples=busy)


def _publish(cache: BinaryCache, closures: list[Closure]) -> None:
    """Fill the cache; uncompressed, for what is measured is distance."""
    environment = {"NIX_CONFIG": "experimental-features = nix-command\nsubstituters =\n"}
    infos = [closure.info for closure in closures]
    run(
        "nix", "copy", "--to", f"file://{cache.directory}?compression=none", *infos,
        environment=environment, timeout_seconds=_PREPARE_SECONDS,
    )  # fmt: skip
