"""Prepare calls that share a fetch, give it up and come back: with each way to a store and each release of Nix."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from lab import Closure, NixsnapDaemon, nix_closure
from lab.processes import wait_until
from rpc import LABEL, Rpc, connect, files
from storebed import Bed

from nixsnap.api import snapshots_pb2

CLIENTS = 10
LONG_SECONDS = 600
"""A time of grace that no test outlasts."""


def ask(rpc: Rpc, key: str, closure: Closure, *, timeout: float | None = None) -> grpc.Future:
    """Begin a Prepare of the closure's layer."""
    labels = {f"{LABEL}nix-closure": closure.info}
    request = snapshots_pb2.PrepareSnapshotRequest(key=key, labels=labels)
    return rpc.stub.Prepare.future(request, timeout=timeout)


def roots(nixsnap: NixsnapDaemon) -> list[Path]:
    """The directories of roots."""
    return list((nixsnap.root / "gcroots").iterdir())


def await_nothing_made(nixsnap: NixsnapDaemon, rpc: Rpc) -> None:
    """The call has ended in the daemon too, and left nothing."""
    wait_until(lambda: not roots(nixsnap), what="the end of a call that was given up")
    assert rpc.list() == []
    for name in ("snapshots", "views", "stubs/overlay"):
        assert [path.name for path in (nixsnap.root / name).glob("*") if path.is_dir()] == []


def assert_whole(bed: Bed, nixsnap: NixsnapDaemon, rpc: Rpc, key: str, closure: Closure) -> None:
    """The layer can be committed, its closure is there and kept, and a container reads from it."""
    name = f"{key} committed"
    rpc.commit(name, key)
    assert {*closure.paths, closure.info} <= bed.live()
    for directory in roots(nixsnap):
        assert any(path.is_symlink() for path in directory.iterdir())
    root = files(rpc.prepare(f"{key} container", name))
    dependency = next(path for path in closure.paths if "-dep-" in path)
    assert (root / dependency.lstrip("/") / "share/f").read_text()
    rpc.remove(f"{key} container")


def assert_fetched_once(bed: Bed, *closures: Closure) -> None:
    """Each store path's content was asked for once."""
    wanted = {path for closure in closures for path in (*closure.paths, closure.info)}
    assert len(bed.cache.nars) == len(set(bed.cache.nars)) == len(wanted)


@pytest.mark.parametrize("ending", ["cancelled", "deadline"])
def test_a_retry_joins_the_fetch_that_was_given_up(bed: Bed, small: Closure, ending: str):
    """A client cancels, or its deadline passes: its call ends at once, the fetch goes on, and the retry joins it."""
    bed.publish(small)
    bed.cache.held.clear()
    with bed.nixsnap(grace_seconds=LONG_SECONDS) as nixsnap, connect(nixsnap.address) as rpc:
        call = ask(rpc, "layer", small, timeout=1.0 if ending == "deadline" else None)
        wait_until(lambda: bool(bed.cache.nars), what="the fetch")
        if ending == "cancelled":
            call.cancel()
        else:
            assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await_nothing_made(nixsnap, rpc)
        assert bed.fetchers()
        retry = ask(rpc, "layer", small)
        wait_until(lambda: bool(roots(nixsnap)), what="the retry")
        bed.cache.held.set()
        retry.result()
        assert_fetched_once(bed, small)
        assert_whole(bed, nixsnap, rpc, "layer", small)


def test_a_fetch_goes_on_for_nobody(bed: Bed, small: Closure):
    """Within the time of grace it ends well by itself, safe from the collector; a later retry finds all of it."""
    bed.publish(small)
    bed.cache.held.clear()
    with bed.nixsnap(grace_seconds=LONG_SECONDS) as nixsnap, connect(nixsnap.address) as rpc:
        call = ask(rpc, "layer", small)
        wait_until(lambda: bool(bed.cache.nars), what="the fetch")
        call.cancel()
        await_nothing_made(nixsnap, rpc)
        assert not bed.can_collect()
        bed.cache.held.set()
        wait_until(bed.can_collect, what="the end of the fetch")
        assert all(map(bed.has, (*small.paths, small.info)))
        ask(rpc, "layer", small).result()
        assert_fetched_once(bed, small)
        assert_whole(bed, nixsnap, rpc, "layer", small)


def test_a_fetch_that_nobody_wants_is_ended(bed: Bed, small: Closure):
    """After the time of grace nothing of it is left, though the cache hangs; a retry starts anew."""
    bed.publish(small)
    bed.cache.held.clear()
    with bed.nixsnap(grace_seconds=0.2) as nixsnap, connect(nixsnap.address) as rpc:
        calls = [ask(rpc, f"layer {number}", small) for number in range(3)]
        wait_until(lambda: bool(bed.cache.nars), what="the fetch")
        for call in calls:
            call.cancel()
        await_nothing_made(nixsnap, rpc)
        wait_until(lambda: not bed.fetchers(), what="the end of the fetch")
        wait_until(bed.can_collect, what="the end of the fetch")
        bed.cache.held.set()
        ask(rpc, "layer 0", small).result()
        assert_whole(bed, nixsnap, rpc, "layer 0", small)


def test_ten_clients_of_one_image(bed: Bed, small: Closure):
    """One fetch for all of them, and a snapshot with roots for each; none of it comes before it is all there."""
    bed.publish(small)
    bed.cache.held.clear()
    with bed.nixsnap() as nixsnap, connect(nixsnap.address) as rpc:
        keys = [f"layer {number}" for number in range(CLIENTS)]
        calls = [ask(rpc, key, small) for key in keys]
        wait_until(lambda: len(roots(nixsnap)) == CLIENTS, what="all the calls")
        wait_until(lambda: bool(bed.cache.nars), what="the fetch")
        assert not any(call.done() for call in calls)
        bed.cache.held.set()
        for call in calls:
            call.result()
        assert rpc.list() == keys
        assert len(roots(nixsnap)) == CLIENTS
        assert_fetched_once(bed, small)
        for key in keys[:2]:
            assert_whole(bed, nixsnap, rpc, key, small)


def test_two_images_that_overlap(bed: Bed):
    """What both need is fetched once, whichever of them asks for it; both are whole."""
    closures = [nix_closure(6, salt="overlap"), nix_closure(9, salt="overlap", name="other")]
    assert len(set(closures[0].paths) & set(closures[1].paths)) == 7
    bed.publish(*closures)
    bed.cache.delay_seconds = 0.02
    with bed.nixsnap() as nixsnap, connect(nixsnap.address) as rpc:
        for call in [ask(rpc, closure.top, closure) for closure in closures]:
            call.result()
        assert_fetched_once(bed, *closures)
        for closure in closures:
            assert_whole(bed, nixsnap, rpc, closure.top, closure)


def test_images_that_have_nothing_in_common(bed: Bed):
    """Neither waits for the other."""
    closures = [nix_closure(2, salt=f"disjoint {number}") for number in range(3)]
    bed.publish(*closures)
    bed.bring_busybox(closures[0])
    bed.cache.held.clear()
    nars = [{bed.nar(path) for path in (*closure.paths, closure.info)} for closure in closures]
    with bed.nixsnap() as nixsnap, connect(nixsnap.address) as rpc:
        calls = [ask(rpc, closure.top, closure) for closure in closures]
        wait_until(
            lambda: all(map(set(bed.cache.nars).intersection, nars)), what="content of each to be asked for"
        )
        bed.cache.held.set()
        for call, closure in zip(calls, closures, strict=True):
            call.result()
            assert_whole(bed, nixsnap, rpc, closure.top, closure)


def test_a_fetch_holds_up_nothing_else(bed: Bed, small: Closure):
    """While it waits for its cache, other images' containers are begun, shown, listed and removed."""
    other = nix_closure(2, salt="something else")
    bed.publish(other)
    with bed.nixsnap() as nixsnap, connect(nixsnap.address) as rpc:
        ask(rpc, "other", other).result()
        rpc.commit("image", "other")
        bed.publish(small)
        bed.cache.held.clear()
        call = ask(rpc, "layer", small)
        wait_until(lambda: any(bed.nar(path) in bed.cache.nars for path in small.paths), what="the fetch")
        root = files(rpc.prepare("container", "image"))
        assert files(rpc.mounts("container")) == root
        assert (root / other.top.lstrip("/") / "bin/sh").is_symlink()
        assert rpc.list() == ["container", "image"]
        rpc.remove("container")
        assert not call.done()
        bed.cache.held.set()
        call.result()
        assert_whole(bed, nixsnap, rpc, "layer", small)


@pytest.mark.parametrize("ending", ["given up", "failed"])
def test_the_first_of_two_images_that_overlap_is_not_had(bed: Bed, ending: str):
    """Its client goes away, or a part of its own is lacking: the second waits no longer and fetches what both need."""
    first, second = nix_closure(4, salt="bereft"), nix_closure(5, salt="bereft")
    bed.publish(first, second)
    if ending == "failed":
        (bed.cache.directory / bed.nar(first.info).lstrip("/")).unlink()
    bed.cache.held.clear()
    with bed.nixsnap(grace_seconds=0.2) as nixsnap, connect(nixsnap.address) as rpc:
        doomed = ask(rpc, "first", first)
        wait_until(lambda: bool(bed.cache.nars), what="the first fetch")
        call = ask(rpc, "second", second)
        wait_until(
            lambda: any(Path(second.info).name[:32] in path for path in bed.cache.requests),
            what="the second to ask what it needs",
        )
        if ending == "given up":
            asked_by_first = len(bed.cache.nars)
            doomed.cancel()
            wait_until(lambda: len(bed.cache.nars) > asked_by_first, what="the second fetch")
        bed.cache.held.set()
        call.result()
        if ending == "failed":
            assert doomed.exception().code() is grpc.StatusCode.NOT_FOUND
            asked = [path for path in bed.cache.nars if path != bed.nar(first.info)]
            assert len(asked) == len(set(asked))
        assert_whole(bed, nixsnap, rpc, "second", second)


def test_daemon_killed_in_the_midst_of_a_fetch(bed: Bed, small: Closure):
    """What fetched for it ends though the cache hangs; the next daemon knows of no half-made layer, and fetches it."""
    bed.publish(small)
    bed.cache.held.clear()
    nixsnap = bed.start_nixsnap()
    with connect(nixsnap.address) as rpc:
        call = ask(rpc, "layer", small)
        wait_until(lambda: bool(bed.cache.nars), what="the fetch")
        nixsnap.kill()
        assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
    if bed.asks_programs:  # which notice nothing, while a connection's end is noticed at once
        assert bed.fetchers()
    with bed.nixsnap() as nixsnap, connect(nixsnap.address) as rpc:
        wait_until(lambda: not bed.fetchers(), what="the end of what fetched for a daemon that was killed")
        await_nothing_made(nixsnap, rpc)
        bed.cache.held.set()
        ask(rpc, "layer", small).result()
        assert_whole(bed, nixsnap, rpc, "layer", small)
        assert len(roots(nixsnap)) == 1


@pytest.mark.parametrize("_attempt", range(3))
def test_first_pulls_into_an_empty_store(bed: Bed, _attempt: int):
    """Ten images at once into a store that has no database yet."""
    closures = [nix_closure(1, salt=f"first {number}") for number in range(CLIENTS)]
    bed.publish(*closures)
    assert not (bed.store_root / "nix/var/nix/db").exists()
    with bed.nixsnap() as nixsnap, ThreadPoolExecutor(CLIENTS) as pool:

        def pull(closure: Closure) -> None:
            with connect(nixsnap.address) as rpc:
                ask(rpc, closure.top, closure).result()
                assert_whole(bed, nixsnap, rpc, closure.top, closure)

        list(pool.map(pull, closures))
