"""`[nix] allow_build` in a daemon: what no cache has is built by the pull that needs it, and never half shown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from lab import (
    Closure,
    Containerd,
    NixsnapDaemon,
    PrivateStore,
    build_image,
    load_image,
    newest_containerd,
    recipes,
)
from lab.nix import nix_build, nix_store, write_busybox_tree
from lab.processes import wait_until
from lab.recipes import add_recipe
from rpc import Rpc, connect, files, refused, store_path_labels

from nixsnap.api import snapshots_pb2


@pytest.fixture
def store(directory: Path) -> PrivateStore:
    """A store that has derivations only, and a cache with nothing."""
    return PrivateStore.below(directory)


@contextmanager
def daemon(store: PrivateStore, directory: Path, *settings: str) -> Iterator[tuple[NixsnapDaemon, Rpc]]:
    """A daemon on that store, with these settings of the [nix] table, and a client of it."""
    (directory / "n").mkdir(exist_ok=True)
    config = "\n".join([store.config, "[nix]", *settings, ""])
    running = NixsnapDaemon.start(directory / "n", config=config, environment=store.environment)
    try:
        with connect(running.address) as rpc:
            yield running, rpc
    finally:
        running.destroy()


def nothing_is_left(running: NixsnapDaemon, rpc: Rpc) -> None:
    assert rpc.list() == []
    assert list((running.root / "gcroots").iterdir()) == []
    assert running.view_mounts() == []


@pytest.mark.parametrize("access", ["auto", "program"])
def test_pull_that_builds(store, directory, access):
    """Prepare builds it and what it refers to; the container sees both, and both are rooted."""
    recipe = add_recipe(store.root, environment=store.environment)
    with daemon(store, directory, "allow_build = true", f'access = "{access}"') as (_, rpc):
        rpc.nix_layer("image", [recipe.needs, recipe.output])
        seen = files(rpc.prepare("container", "image"))
        assert (seen / recipe.output.lstrip("/") / "share/needs").read_text() == f"{recipe.needs}\n"
        assert (seen / recipe.needs.lstrip("/") / "share/f").read_text() == "built\n"
        assert {recipe.needs, recipe.output} <= store.live()


def test_container_of_what_was_built(store, directory):
    """A client loads an image of which the node has derivations only, and containerd runs it."""
    with tempfile.TemporaryDirectory(prefix="nixsnap-recipe.") as scratch:
        write_busybox_tree(Path(scratch) / "busybox")
        top = nix_build(recipes.EXPRESSION, busybox=Path(scratch) / "busybox", name="contained")
    recipe = add_recipe(store.root, name="contained", environment=store.environment)
    assert recipe.output == top
    paths = nix_store("--query", "--requisites", top)
    (busybox,) = store.root.glob("nix/store/*-busybox-static")
    shell = f"/nix/store/{busybox.name}/bin/sh"
    (directory / "store-paths").write_text("\n".join([*paths, f"/nix/store/{busybox.name}", ""]))
    closure = Closure(top=top, paths=tuple(paths), info=str(directory))
    archive = build_image(closure, directory / "image.tar", reference="lab.invalid/built:1")
    with daemon(store, directory, "allow_build = true") as (running, _):
        (directory / "c").mkdir()
        containerd = Containerd.start(newest_containerd(), directory / "c", snapshotter=running.address)
        try:
            load_image(containerd, archive)
            script = f"read needs < {top}/share/needs; read word < $needs/share/f; echo $needs $word"
            said = containerd.run("lab.invalid/built:1", shell, "-c", script).stdout
            assert said == f"{recipe.needs} built\n"
        finally:
            containerd.stop()


@pytest.mark.parametrize("access", ["auto", "program"])
def test_healing_that_builds(store, directory, access):
    """What was built and then deleted by force is built again before the container starts again."""
    recipe = add_recipe(store.root, environment=store.environment)
    with daemon(store, directory, "allow_build = true", f'access = "{access}"') as (_, rpc):
        rpc.nix_layer("image", [recipe.output])
        rpc.prepare("container", "image")
        store.delete_by_force([recipe.output])
        seen = files(rpc.mounts("container"))
        assert (seen / recipe.output.lstrip("/") / "share/f").read_text() == "built\n"


def test_pull_that_may_not_build(store, directory):
    """NotFound, with the path and the setting that would have it built."""
    recipe = add_recipe(store.root, environment=store.environment)
    with daemon(store, directory) as (running, rpc):
        with refused(grpc.StatusCode.NOT_FOUND, recipe.output, "no cache has", "[nix] allow_build = true"):
            rpc.prepare("key", labels=store_path_labels([recipe.output]))
        nothing_is_left(running, rpc)
        assert not store.has(recipe.output)


@pytest.mark.parametrize("access", ["auto", "program"])
def test_pull_whose_build_fails(store, directory, access):
    """Unavailable, with the derivation, its status and what its builder said; the next pull builds anew."""
    recipe = add_recipe(store.root, script="echo it rains; exit 3", environment=store.environment)
    with daemon(store, directory, "allow_build = true", f'access = "{access}"') as (running, rpc):
        for _ in range(2):
            with refused(
                grpc.StatusCode.UNAVAILABLE,
                recipe.output,
                recipe.derivation,
                "exit code 3",
                "it rains",
                "nix log",
            ):
                rpc.prepare("key", labels=store_path_labels([recipe.output]))
            nothing_is_left(running, rpc)
            assert not store.has(recipe.output)


@pytest.mark.parametrize("access", ["auto", "program"])
def test_pull_that_gives_up_on_a_build(store, directory, access):
    """Its deadline ends the call; when grace is over the builder ends too, and nothing of it is left."""
    recipe = add_recipe(store.root, script="mkdir $out; sleep 4712", environment=store.environment)
    settings = ("allow_build = true", f'access = "{access}"', "grace_seconds = 0.2")
    with daemon(store, directory, *settings) as (running, rpc):
        call = rpc.stub.Prepare.future(prepare_request(recipe.output), timeout=60)
        wait_until(lambda: builders() == 1, what="the builder")
        call.cancel()
        wait_until(lambda: builders() == 0, what="the builder's end")
        wait_until(lambda: list((running.root / "gcroots").iterdir()) == [], what="roots removed")
        nothing_is_left(running, rpc)
        assert not store.has(recipe.output)


def prepare_request(store_path: str):
    return snapshots_pb2.PrepareSnapshotRequest(key="key", labels=store_path_labels([store_path]))


def builders() -> int:
    """How many builders hang."""
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return sum(command[-2:] == ["sleep", "4712"] for command in commands)
