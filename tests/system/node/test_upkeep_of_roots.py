"""Roots and store paths that somebody takes away behind our back, on a store of the test's own."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from lab import NixsnapDaemon, PrivateStore, nix_closure
from lab.processes import wait_until
from rpc import LABEL, connect, files, store_path_labels


@pytest.fixture
def store(directory: Path) -> PrivateStore:
    """An empty store, and a cache."""
    return PrivateStore.below(directory)


@contextmanager
def daemon_on(store: PrivateStore, directory: Path, *, config: str = "") -> Iterator[NixsnapDaemon]:
    """A daemon on that store, with its root in `directory`; its views stay when it ends."""
    (directory / "n").mkdir(exist_ok=True)
    daemon = NixsnapDaemon.start(directory / "n", config=config + store.config, environment=store.environment)
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def nixsnap(directory, store):
    with daemon_on(store, directory) as daemon:
        yield daemon
    daemon.destroy()


@pytest.fixture
def rpc(nixsnap):
    with connect(nixsnap.address) as rpc:
        yield rpc


@pytest.fixture
def closure(store):
    """A closure that the cache has and the store does not."""
    closure = nix_closure(4, salt="roots")
    store.publish(closure)
    return closure


def dependencies(closure) -> list[str]:
    return [path for path in closure.paths if "-dep-" in path]


def closure_labels(closure) -> dict[str, str]:
    return {f"{LABEL}nix-closure": closure.info}


def add_image(rpc, closure, name: str = "image") -> None:
    rpc.prepare(f"extract {name}", labels=closure_labels(closure))
    rpc.commit(name, f"extract {name}")


def content(mount, path: str) -> str:
    return (files(mount) / path.lstrip("/") / "share/f").read_text()


def shown(rpc, key: str, path: str) -> str:
    """The same, where the kind of view may be one whose store paths are mounts of their own."""
    first, *within = rpc.all_mounts(key)
    own = [Path(mount.source) for mount in within if mount.target == path]
    return ((own or [files(first) / path.lstrip("/")])[0] / "share/f").read_text()


def until(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, what=what, timeout_seconds=60)


# --- store paths deleted by force


@pytest.mark.parametrize(
    "view",
    [
        pytest.param("overlay", marks=pytest.mark.real_root("views of that kind need trusted.* attributes")),
        "data-only",
        "fuse",
        "bind",
    ],
)
def test_a_stopped_container_starts_again(store, directory, closure, view):
    """Its view is mounted and has looked the paths up; Mounts, which precedes each start, puts them back into it."""
    if view == "fuse" and shutil.which("fuse-overlayfs") is None:
        pytest.skip("this machine lacks fuse-overlayfs")
    with (
        daemon_on(store, directory, config=f'store_view = "{view}"\n') as daemon,
        connect(daemon.address) as rpc,
    ):
        add_image(rpc, closure)
        rpc.prepare("container", "image")
        one, other = dependencies(closure)[:2]
        before = shown(rpc, "container", one), shown(rpc, "container", other)
        store.delete_by_force([one, other])
        assert (shown(rpc, "container", one), shown(rpc, "container", other)) == before
        assert "is whole again" in daemon.log_text()
        # A second container, and one upon what a container left, find everything too.
        rpc.prepare("second", "image")
        assert shown(rpc, "second", one) == before[0]
        store.delete_by_force([one])
        assert shown(rpc, "second", one) == shown(rpc, "container", one) == before[0]
    daemon.destroy()


@pytest.mark.parametrize("labels", [closure_labels, lambda closure: store_path_labels(closure.paths)])
def test_what_cannot_be_had_again_is_an_error_that_names_it(rpc, store, closure, labels):
    """No container starts with something missing, and containerd is not told that the snapshot does not exist."""
    rpc.prepare("extract image", labels=labels(closure))
    rpc.commit("image", "extract image")
    rpc.prepare("container", "image")
    lost = dependencies(closure)[0]
    store.delete_by_force([lost])
    for call in (lambda: rpc.mounts("container"), lambda: rpc.prepare("other", "image")):
        with pytest.raises(grpc.RpcError) as raised, store.without_cache():
            call()
        assert raised.value.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE}
        assert Path(lost).name in raised.value.details()
        assert "gone from the store" in raised.value.details()
    assert rpc.list() == ["container", "image"]
    assert content(rpc.mounts("container"), lost)


def test_everything_gone_the_closure_info_too(rpc, store, closure):
    """Each store path is rooted by itself then, and what keeps it is still the snapshot."""
    add_image(rpc, closure)
    store.destroy()
    assert content(rpc.prepare("container", "image"), dependencies(closure)[0])
    assert not store.has(closure.info)
    store.collect_garbage()
    assert all(map(store.has, closure.paths))
    rpc.remove("container")
    rpc.remove("image")
    store.collect_garbage()
    assert not any(map(store.has, closure.paths))


def test_a_pull_of_what_was_deleted_by_force(rpc, store, closure):
    """Nix's records say that it is there; it is fetched all the same."""
    add_image(rpc, closure)
    store.delete_by_force([*dependencies(closure)[:2], closure.info])
    add_image(rpc, closure, "second")
    assert all(map(store.has, (*closure.paths, closure.info)))


# --- a daemon that starts


def test_start_up_makes_good_what_was_lost(store, directory, closure):
    """Roots, Nix's links to them, and store paths: all are there again, without any call, and the log says so."""
    with daemon_on(store, directory) as daemon, connect(daemon.address) as rpc:
        for name in ("no-roots", "unknown-to-nix", "whole"):
            add_image(rpc, closure, name)
        mount = rpc.prepare("container", "whole")
        content(mount, dependencies(closure)[0])
    layers = sorted(
        (path for path in (daemon.root / "gcroots").iterdir() if path.name != "images"),
        key=lambda path: int(path.name),
    )
    shutil.rmtree(layers[0])
    auto = store.root / "nix/var/nix/gcroots/auto"
    for link in auto.iterdir():
        if link.readlink().parent == layers[1]:
            link.unlink()
    store.delete_by_force(dependencies(closure)[:1])
    with daemon_on(store, directory) as daemon:
        until(lambda: daemon.log_text().count("is whole again") == 3, "three layers made whole")
        assert {link.readlink().parent for link in auto.iterdir()} >= set(layers)
        assert content(mount, dependencies(closure)[0])  # in the view that was mounted all the time
    with daemon_on(store, directory) as daemon:
        until(lambda: "layers=3 not_whole=0" in daemon.log_text(), "a look that finds nothing")
    daemon.destroy()


def test_start_up_without_the_cache(store, directory, closure):
    """The daemon serves, complains once, and heals as soon as the cache is back."""
    with daemon_on(store, directory) as daemon, connect(daemon.address) as rpc:
        add_image(rpc, closure)
    lost = dependencies(closure)[0]
    store.delete_by_force([lost])
    with contextlib.ExitStack() as stack:
        with store.without_cache():
            daemon = stack.enter_context(daemon_on(store, directory))
            rpc = stack.enter_context(connect(daemon.address))
            assert rpc.list() == ["image"]
            until(lambda: "trying again later" in daemon.log_text(), "a complaint")
        until(lambda: store.has(lost), "the store path")
    daemon.destroy()


def test_the_end_does_not_wait_for_a_collector(store, directory, closure):
    """Upkeep that waits until one has ended is given up when the daemon stops, and made good at its next start."""
    with daemon_on(store, directory) as daemon, connect(daemon.address) as rpc:
        add_image(rpc, closure)
    root = next((daemon.root / "gcroots").glob("*/closure"))
    root.unlink()
    with (store.root / "nix/var/nix/gc.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a collector has it
        with daemon_on(store, directory) as daemon:
            until(lambda: "waiting for Nix's garbage collector" in daemon.log_text(), "upkeep waits")
            assert daemon.stop() == 0
    with daemon_on(store, directory):
        until(root.is_symlink, "the root is made again")


def test_orphan_roots_go(store, directory, closure):
    """A daemon that was killed between root and row leaves a root that nobody owns."""
    with daemon_on(store, directory) as daemon, connect(daemon.address) as rpc:
        add_image(rpc, closure)
        daemon.kill()
    orphan = daemon.root / "gcroots/4711"
    store.nix_store("--add-root", str(orphan / "path-0"), "--indirect", "--realise", closure.top)
    with daemon_on(store, directory) as daemon:
        assert not orphan.exists()
    daemon.destroy()


def test_a_removed_snapshot_is_not_rooted_again(rpc, store, nixsnap, closure):
    """Whatever upkeep did for it: the roots of a snapshot go with it."""
    add_image(rpc, closure)
    store.delete_by_force(dependencies(closure)[:1])
    rpc.prepare("container", "image")
    rpc.remove("container")
    rpc.remove("image")
    assert [path.name for path in (nixsnap.root / "gcroots").iterdir()] == []
    store.collect_garbage()
    assert not store.live()
