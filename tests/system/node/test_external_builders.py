"""External builders that heal, hang, flood and come to nothing, each asked by a real daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from lab import NixsnapDaemon, PrivateStore, nix_closure
from lab.processes import wait_until
from rpc import Rpc, connect, files, refused, store_path_labels

from nixsnap.api import snapshots_pb2

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def store(directory: Path) -> PrivateStore:
    """An empty store, and a cache. It was opened once, for a new one cannot be opened by several Nixes at once."""
    store = PrivateStore.below(directory)
    store.nix_store("--init")
    return store


@pytest.fixture
def closure(store):
    """A closure that the cache has and the store does not."""
    closure = nix_closure(3, salt="builders")
    store.publish(closure)
    return closure


@contextmanager
def daemon(
    store: PrivateStore, directory: Path, script: str, *settings: str
) -> Iterator[tuple[NixsnapDaemon, Rpc]]:
    """A daemon whose builder is a shell script, with settings of the [nix] table, and a client of it."""
    program = directory / "builder"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    (directory / "n").mkdir(exist_ok=True)
    config = "\n".join([f'external_builder = "{program}"', store.config, "[nix]", *settings, ""])
    running = NixsnapDaemon.start(directory / "n", config=config, environment=store.environment)
    try:
        with connect(running.address) as rpc:
            yield running, rpc
    finally:
        running.destroy()


def fetch_with_nix(store: PrivateStore) -> str:
    """A builder that is Nix, and fetches again what was deleted by force."""
    nix = f"nix-store --store {store.root}"
    return f'[ -e "{store.root}$2" ] || flag=--repair\nexec {nix} --realise $flag --add-root "$1" --indirect "$2"'


def nothing_is_left(running: NixsnapDaemon, rpc: Rpc) -> None:
    assert rpc.list() == []
    assert list((running.root / "gcroots").iterdir()) == []


def test_healing(store, directory, closure):
    """A store path deleted by force under a stopped container is there again before its next start."""
    with daemon(store, directory, fetch_with_nix(store)) as (running, rpc):
        rpc.nix_layer("image", closure.paths)
        rpc.prepare("container", "image")
        lost = [path for path in closure.paths if "-dep-" in path][:2]
        store.delete_by_force(lost)
        seen = files(rpc.mounts("container"))
        for path in lost:
            assert (seen / path.lstrip("/") / "share/f").is_file()
        assert "is whole again" in running.log_text()


def test_healing_that_fails(store, directory, closure):
    """The builder cannot get it back: the container's start is refused with the path and the builder's words."""
    script = f"[ -e {directory}/broken ] && {{ echo it rains >&2; exit 3; }}\n{fetch_with_nix(store)}"
    with daemon(store, directory, script) as (_, rpc):
        rpc.nix_layer("image", closure.paths)
        rpc.prepare("container", "image")
        lost = next(path for path in closure.paths if "-dep-" in path)
        (directory / "broken").touch()  # first: the daemon itself may be looking at its roots just then
        store.delete_by_force([lost])
        with pytest.raises(grpc.RpcError) as raised:
            rpc.mounts("container")
        assert raised.value.code() == UNAVAILABLE
        assert Path(lost).name in raised.value.details()
        assert "it rains" in raised.value.details()
        (directory / "broken").unlink()

        def mounts_again() -> bool:
            with contextlib.suppress(grpc.RpcError):  # of an attempt of the daemon's own that began before
                rpc.mounts("container")
                return True
            return False

        wait_until(mounts_again, what="be healed")
        assert (files(rpc.mounts("container")) / lost.lstrip("/")).is_dir()


def test_flood_of_words(store, directory, closure):
    """Megabytes on both outputs wedge nothing: the pull succeeds, and others are served meanwhile."""
    flood = "head -c 8000000 /dev/zero | tr '\\0' x"
    script = f"{flood}\n{flood} >&2\n{fetch_with_nix(store)}"
    with daemon(store, directory, script) as (_, rpc):
        rpc.nix_layer("image", closure.paths)
        assert (files(rpc.prepare("container", "image")) / closure.top.lstrip("/")).is_dir()


def test_silence(store, directory, closure):
    """One that hangs and says nothing is ended after `stall_seconds`, and what it started too."""
    script = "sleep 4713 &\nwait"
    with daemon(store, directory, script, "stall_seconds = 0.5") as (running, rpc):
        with refused(UNAVAILABLE, closure.top, "has said nothing for 0.5 seconds", "stall_seconds"):
            rpc.prepare("key", labels=store_path_labels([closure.top]))
        wait_until(lambda: sleepers() == 0, what="the end of the builder")
        nothing_is_left(running, rpc)


def test_client_that_gives_up(store, directory, closure):
    """Its call ends at once; the builder is ended when nobody has come back for the time of grace."""
    request = snapshots_pb2.PrepareSnapshotRequest(key="key", labels=store_path_labels([closure.top]))
    with daemon(store, directory, "sleep 4713 &\nwait", "grace_seconds = 0.2") as (running, rpc):
        call = rpc.stub.Prepare.future(request, timeout=60)
        wait_until(lambda: sleepers() == 1, what="the builder")
        call.cancel()
        wait_until(lambda: sleepers() == 0, what="the end of the builder")
        wait_until(lambda: list((running.root / "gcroots").iterdir()) == [], what="roots removed")
        nothing_is_left(running, rpc)


def test_success_that_is_none(store, directory, closure):
    """One that says it succeeded and made nothing is found out: no pull succeeds with something missing."""
    with daemon(store, directory, "exit 0") as (running, rpc):
        with refused(grpc.StatusCode.NOT_FOUND, closure.top):
            rpc.prepare("key", labels=store_path_labels([closure.top]))
        nothing_is_left(running, rpc)


def test_program_that_is_not_there(store, directory, closure):
    """The program is named."""
    with daemon(store, directory, "exit 0") as (running, rpc):
        (directory / "builder").unlink()
        with refused(grpc.StatusCode.FAILED_PRECONDITION, f"{directory}/builder", "No such file"):
            rpc.prepare("key", labels=store_path_labels([closure.top]))
        nothing_is_left(running, rpc)


def sleepers() -> int:
    """How many builders hang."""
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return sum(command == ["sleep", "4713"] for command in commands)
