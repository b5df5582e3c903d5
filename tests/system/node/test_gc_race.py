"""Nix's garbage collector in a loop, on a store of the test's own, while images come and go."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
from lab import Closure, NixsnapDaemon, PrivateStore, nix_closure
from rpc import LABEL, Rpc, connect, files, store_path_labels

CLIENTS = 3
ROUNDS = int(os.environ.get("NIXSNAP_GC_ROUNDS", "40"))
"""Of each client, a third of a second each or less. Set it higher for a run of minutes."""


@attrs.define
class Counts:
    """What happened; each has one writer or is only ever counted up under the lock."""

    lock: threading.Lock = attrs.field(factory=threading.Lock)
    pulls: int = 0
    removals: int = 0
    collections: int = 0
    collected: int = 0


@pytest.fixture
def store(directory: Path) -> PrivateStore:
    """An empty store, and a cache."""
    store = PrivateStore.below(directory)
    # The first opening is no place for a race: Nix 2.8 itself fails where two programs make the database at once.
    store.nix_store("--init")
    return store


@pytest.fixture
def nixsnap(directory: Path, store: PrivateStore) -> Iterator[NixsnapDaemon]:
    """A daemon on that store."""
    (directory / "n").mkdir()
    daemon = NixsnapDaemon.start(directory / "n", config=store.config, environment=store.environment)
    yield daemon
    daemon.destroy()


def pull(rpc: Rpc, name: str, closure: Closure, *, legacy: bool) -> None:
    """Make an image's one layer, as an unpacker does."""
    labels = store_path_labels(closure.paths) if legacy else {f"{LABEL}nix-closure": closure.info}
    rpc.prepare(f"extract {name}", labels=labels)
    rpc.commit(name, f"extract {name}")


def use(rpc: Rpc, name: str, closure: Closure) -> None:
    """Start a container, as far as the snapshotter is concerned, and read a file of every dependency."""
    root = files(rpc.prepare(f"container {name}", name))
    dependencies = [path for path in closure.paths if "-dep-" in path]
    assert dependencies
    for path in dependencies:
        assert (root / path.lstrip("/") / "share/f").read_text()
    top = root / closure.top.lstrip("/")
    assert {*(top / "dependencies").read_text().split()} >= set(dependencies)
    assert (top / "bin/sh").is_symlink()
    rpc.remove(f"container {name}")


def client(number: int, address: Path, closures: list[Closure], counts: Counts) -> str:
    """Pull, use and remove images; the last one stays."""
    with connect(address) as rpc:
        for step in range(ROUNDS):
            # Clients meet on the same closures at different times, and share the dependencies of some.
            closure = closures[(number + step) % len(closures)]
            name = f"image {number} {step}"
            pull(rpc, name, closure, legacy=bool((number + step) % 2))
            use(rpc, name, closure)
            with counts.lock:
                counts.pulls += 1
            if step == ROUNDS - 1:
                return name
            rpc.remove(name)
            with counts.lock:
                counts.removals += 1
    raise AssertionError


def collect(store: PrivateStore, done: threading.Event, counts: Counts) -> None:
    """Run Nix's collector again and again."""
    while not done.is_set():
        counts.collected += store.collect_garbage()
        counts.collections += 1


def test_nothing_is_lost_and_nothing_leaks(nixsnap, store):
    """What is live is whole at every moment; at the end there are the roots of live snapshots and no others."""
    closures = [nix_closure(4, salt=f"race {number}") for number in range(3)]
    store.publish(*closures)
    counts, done = Counts(), threading.Event()
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        collector = pool.submit(collect, store, done, counts)
        clients = [pool.submit(client, n, nixsnap.address, closures, counts) for n in range(CLIENTS)]
        try:
            kept = [future.result() for future in clients]
        finally:
            done.set()
        collector.result()
    print(counts)
    assert counts.removals == CLIENTS * (ROUNDS - 1)
    assert counts.collections > 1
    assert counts.collected > 0
    wanted = [closures[(number + ROUNDS - 1) % len(closures)] for number in range(CLIENTS)]
    store.collect_garbage()
    store.nix_store("--verify", "--check-contents")
    present = {path.name for path in (store.root / "nix/store").iterdir() if path.name != ".links"}
    needed = {Path(path).name for path in itertools.chain(*(closure.paths for closure in wanted))}
    infos = {Path(closure.info).name for closure in wanted}
    assert needed <= present <= needed | infos
    with connect(nixsnap.address) as rpc:
        assert rpc.list() == sorted(kept)
        for name, closure in zip(kept, wanted, strict=True):
            use(rpc, name, closure)
        assert len(list((nixsnap.root / "gcroots").iterdir())) == len(kept)
        for name in kept:
            rpc.remove(name)
    store.collect_garbage()
    assert list((nixsnap.root / "gcroots").iterdir()) == []
    assert list((store.root / "nix/var/nix/gcroots/auto").iterdir()) == []
    assert [path.name for path in (store.root / "nix/store").iterdir()] == [".links"]
