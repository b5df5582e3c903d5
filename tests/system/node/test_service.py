"""The daemon on its own socket: the contract, bad input, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from lab import NixsnapDaemon, mounts_below, nix_closure, run
from lab.nix import nix_environment, nix_store
from rpc import LABEL, connect, files, refused, store_path_labels

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
def rpc(nixsnap):
    with connect(nixsnap.address) as rpc:
        yield rpc


def everything(root: Path) -> set[str]:
    """All that lies below a root, without the database."""
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if not path.name.startswith("metadata.sqlite")
    }


def store_names(mount) -> list[str]:
    return sorted(path.name for path in (files(mount) / "nix/store").iterdir())


def stub_layers(root: Path) -> Path:
    """Where the stub layers lie of the kind of rootfs view that the daemon makes."""
    (place,) = filter(Path.is_dir, (root / "stubs").iterdir())
    return place


def add_symlink(target: str, tmp_path: Path, name: str) -> str:
    """A store path that is a symlink."""
    (tmp_path / name).symlink_to(target)
    return nix_store("--add", str(tmp_path / name))[0]


# --- rootfs views


def test_view_shows_the_closure(rpc, nixsnap, closure):
    """Active snapshots and view snapshots upon a nix layer show its store paths, by one bind mount."""
    rpc.nix_layer("image", closure.paths)
    mount = rpc.prepare("container", "image")
    assert list(mount.options) == ["rw", "rbind"]
    assert store_names(mount) == sorted(Path(path).name for path in closure.paths)
    shown = rpc.view("inspect", "image")
    assert list(shown.options) == ["ro", "rbind"]
    assert store_names(shown) == store_names(mount)
    with pytest.raises(OSError, match="Read-only"):
        (files(shown) / "x").touch()
    assert len(nixsnap.view_mounts()) == 2


def test_files_have_the_stores_attributes(rpc, closure):
    """What the container sees of a store path's root directory is its mode and time, and root as its owner."""
    rpc.nix_layer("image", closure.paths)
    shown = files(rpc.prepare("container", "image")) / "nix/store"
    for path in closure.paths:
        ours, theirs = (shown / Path(path).name).lstat(), Path(path).lstat()
        assert (ours.st_mode, ours.st_uid, ours.st_mtime) == (theirs.st_mode, 0, theirs.st_mtime)


def test_layers_in_any_order(rpc, closure):
    """Base, nix, plain, nix: every layer's files are there, upper ones win, and closures may overlap."""
    other = nix_closure(2, salt="other")
    (files(rpc.prepare("k0")) / "base").write_text("base")
    rpc.commit("base", "k0")
    rpc.nix_layer("nix1", closure.paths, "base")
    mount = rpc.prepare("k2", "nix1")
    changed = closure.top.removeprefix("/")
    (files(mount) / changed / "added").write_text("added")
    (files(mount) / changed / "dependencies").unlink()
    (files(mount) / "base").write_text("changed")
    rpc.commit("plain", "k2")
    rpc.nix_layer("nix2", [*other.paths, closure.paths[0]], "plain")
    root = files(rpc.prepare("container", "nix2"))
    assert (root / "base").read_text() == "changed"
    assert (root / changed / "added").read_text() == "added"
    assert not (root / changed / "dependencies").exists()
    assert (root / changed / "bin/sh").is_symlink()
    assert sorted(path.name for path in (root / "nix/store").iterdir()) == sorted(
        {Path(path).name for path in (*closure.paths, *other.paths)}
    )


def test_mounts_makes_a_lost_view_anew(rpc, nixsnap, closure):
    """After a reboot the mounts are gone; Mounts brings the view back, with what the container had written."""
    rpc.nix_layer("image", closure.paths)
    mount = rpc.prepare("container", "image")
    (files(mount) / "written").write_text("kept")
    run("umount", files(mount).parent)
    shutil.rmtree(stub_layers(nixsnap.root))
    again = rpc.mounts("container")
    assert (files(again) / "written").read_text() == "kept"
    assert store_names(again) == sorted(Path(path).name for path in closure.paths)


def test_commit_of_a_container_keeps_its_changes(rpc, closure):
    """A container's snapshot that is committed becomes a layer; its view goes, and children see what it changed."""
    rpc.nix_layer("image", closure.paths)
    mount = rpc.prepare("container", "image")
    (files(mount) / "written").write_text("kept")
    shutil.rmtree(files(mount) / closure.paths[0].removeprefix("/"))
    rpc.commit("snapshot", "container")
    root = files(rpc.prepare("next", "snapshot"))
    assert (root / "written").read_text() == "kept"
    assert not (root / closure.paths[0].removeprefix("/")).exists()
    assert len(list((root / "nix/store").iterdir())) == len(closure.paths) - 1


def test_a_parent_given_at_commit(rpc, closure):
    """containerd 2.2 unpacks layers side by side and gives each its parent at Commit ("rebase")."""
    (files(rpc.prepare("k0")) / "base").touch()
    rpc.prepare("k1", labels=store_path_labels(closure.paths))
    rpc.commit("base", "k0")
    rpc.commit("nix", "k1", parent="base")
    root = files(rpc.prepare("container", "nix"))
    assert (root / "base").exists()
    assert len(list((root / "nix/store").iterdir())) == len(closure.paths)


def test_removal_takes_everything(rpc, nixsnap, closure):
    """Snapshots of every kind go without a trace: files, mounts, stub layers, roots."""
    before = everything(nixsnap.root)
    rpc.nix_layer("image", closure.paths)
    rpc.prepare("container", "image")
    rpc.view("view", "image")
    with refused(PRECONDITION, "'image'", "children"):
        rpc.remove("image")
    for key in ("container", "view", "image"):
        rpc.remove(key)
    assert everything(nixsnap.root) == before | {str(stub_layers(nixsnap.root).relative_to(nixsnap.root))}
    assert mounts_below(nixsnap.root) == []
    assert rpc.list() == []


def test_removal_while_in_use(rpc, nixsnap, closure):
    """A process that still sits in the view does not stop the removal; the mount goes with the process."""
    rpc.nix_layer("image", closure.paths)
    mount = rpc.prepare("container", "image")
    with subprocess.Popen(["sleep", "100"], cwd=files(mount)) as process:
        rpc.remove("container")
        assert mounts_below(nixsnap.root) == []
        process.kill()


def test_garbage_collection_spares_live_layers(rpc, closure):
    """Nix's collector finds a root for every path of a nix layer, and none once the layer is gone."""
    own = nix_closure(2, salt="collected")
    rpc.nix_layer("image", own.paths)
    roots = nix_store("--query", "--roots", own.top)
    assert any("gcroots" in root for root in roots)
    rpc.remove("image")
    assert not any("nixsnap" in root for root in nix_store("--query", "--roots", own.top))
    assert closure.top != own.top


# --- what must not happen


def test_nothing_of_the_host_outside_the_closure(rpc, closure):
    """From the directory that a container gets, no path leads to another store path or to the host's files."""
    outside = nix_closure(1, salt="outside").top
    rpc.nix_layer("image", closure.paths)
    root = files(rpc.prepare("container", "image"))
    script = f"ls /nix/store /..; ls {outside} /../{Path(outside).name}; cat /nix/store/../../etc/shadow"
    result = subprocess.run(
        ["chroot", root, f"{closure.top}/bin/sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert Path(outside).name not in result.stdout
    assert "root:" not in result.stdout
    assert set(result.stdout.split()) <= {
        "/nix/store:",
        "/..:",
        "nix",
        *(Path(path).name for path in closure.paths),
    }


def test_store_paths_that_are_symlinks_are_not_followed(rpc, tmp_path, closure):
    """A store path may be a symlink to / or to /etc; the container gets the symlink, which leads within itself."""
    evil = [add_symlink("/", tmp_path, "to-root"), add_symlink("/etc", tmp_path, "to-etc")]
    evil.append(add_symlink("../../../../../etc", tmp_path, "up-to-etc"))
    rpc.nix_layer("image", [*evil, *closure.paths])
    root = files(rpc.prepare("container", "image"))
    for path in evil:
        assert (root / path.removeprefix("/")).is_symlink()
        result = subprocess.run(
            ["chroot", root, f"{closure.top}/bin/sh", "-c", f"ls {path}/ {path}/shadow; cat {path}/hostname"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "shadow" not in result.stdout
        assert "hostname" not in result.stdout


def test_hostile_layers_do_not_redirect_mounts(rpc, nixsnap, closure, tmp_path):
    """A layer may hold symlinks where the store should be; stub layers cover them and nothing on the host changes."""
    (tmp_path / "victim").mkdir()
    root = files(rpc.prepare("k0"))
    (root / "nix").symlink_to(tmp_path / "victim")
    rpc.commit("base", "k0")
    rpc.nix_layer("image", closure.paths, "base")
    shown = files(rpc.prepare("container", "image"))
    assert not (shown / "nix").is_symlink()
    assert len(list((shown / "nix/store").iterdir())) == len(closure.paths)
    assert list((tmp_path / "victim").iterdir()) == []
    assert mounts_below(tmp_path) == []
    assert len(nixsnap.view_mounts()) == 1


# --- bad input


@pytest.mark.parametrize(
    "value",
    [
        "/etc",
        "/nix/store/..",
        "/nix/store/" + "a" * 32 + "-x/../../etc",
        "/nix/store/" + "a" * 32 + "-" + "x" * 300,
        "x\ny",
    ],
)
def test_malformed_store_paths(rpc, nixsnap, value):
    """They are refused before anything is made."""
    before = everything(nixsnap.root)
    with refused(INVALID, "nix-store-path.0"):
        rpc.prepare("key", labels=store_path_labels([value]))
    assert everything(nixsnap.root) == before
    with refused(NOT_FOUND):
        rpc.stat("key")


def test_absent_store_path(rpc, nixsnap):
    """What no cache has fails Prepare with Nix's words, and leaves neither key nor root."""
    before = everything(nixsnap.root)
    absent = "/nix/store/" + "a" * 32 + "-absent"
    with refused(NOT_FOUND, absent, "no cache has"):
        rpc.prepare("key", labels=store_path_labels([absent]))
    assert everything(nixsnap.root) == before
    with refused(NOT_FOUND):
        rpc.stat("key")


def test_nix_layer_without_paths(rpc):
    """A label that announces a nix layer and names nothing is refused."""
    with refused(INVALID, "nix-layer"):
        rpc.prepare("key", labels={f"{LABEL}nix-layer": "true"})


def test_closure_info_that_is_none(rpc, closure):
    """A store path without a store-paths file is no closureInfo."""
    with refused(INVALID, closure.top, "closureInfo"):
        rpc.prepare("key", labels={f"{LABEL}nix-closure": closure.top})
    assert rpc.list() == []


def test_ten_thousand_paths(rpc):
    """Ten thousand store paths are ten thousand labels, one call of Nix, and one mount."""
    big = nix_closure(10_000, salt="big")
    rpc.nix_layer("image", big.paths)
    assert len(store_names(rpc.prepare("container", "image"))) == len(big.paths)


@pytest.mark.parametrize("key", ["a/b/../c", "line\nbreak", "k" * 4096, "späße", "%s {} \\x00"])
def test_strange_keys(rpc, key):
    """A key is any text: it never becomes part of a path."""
    rpc.prepare(key)
    assert rpc.stat(key).name == key
    rpc.commit(key + "!", key)
    assert rpc.list(f'name=="{key}!"' if "\n" not in key and "\\" not in key else "") == [key + "!"]
    rpc.remove(key + "!")


def test_contract_errors(rpc):
    """The code of each mistake is containerd's."""
    rpc.prepare("active")
    rpc.prepare("second")
    with refused(INVALID, "key"):
        rpc.prepare("")
    with refused(EXISTS, "'active'"):
        rpc.prepare("active")
    with refused(INVALID, "'active'", "not committed"):
        rpc.prepare("child", "active")
    with refused(NOT_FOUND, "'none'"):
        rpc.prepare("child", "none")
    rpc.commit("name", "active")
    with refused(EXISTS, "'name'"):
        rpc.commit("name", "second")
    with refused(PRECONDITION, "'name'"):
        rpc.mounts("name")
    rpc.view("view", "name")
    with refused(PRECONDITION, "'view'"):
        rpc.commit("other", "view")
    with refused(NOT_FOUND, "'active'"):
        rpc.stat("active")
    with refused(PRECONDITION, "'name'"):
        rpc.remove("name")
    with refused(INVALID):
        rpc.list("name==")


def test_missing_nix_store(directory, closure):
    """Without Nix the daemon starts and serves ordinary images; a nix layer is refused with the way out."""
    (directory / "n").mkdir()
    (directory / "bin").mkdir()
    (directory / "bin/setpriv").symlink_to(shutil.which("setpriv"))  # the lab starts daemons through it
    nowhere = {"PATH": str(directory / "bin"), "NIX_REMOTE": ""}
    daemon = NixsnapDaemon.start(directory / "n", environment=nowhere)
    with connect(daemon.address) as rpc:
        rpc.prepare("plain")
        with refused(PRECONDITION, "nix-daemon", "install Nix"):
            rpc.prepare("key", labels=store_path_labels(closure.paths))
    daemon.destroy()


def test_derivations_are_not_built(rpc, nixsnap, tmp_path, closure):
    """An image that names a derivation would have the node run a build of its choice, as root."""
    (tmp_path / "evil.nix").write_text(
        'derivation { name = "evil"; system = builtins.currentSystem; builder = "/bin/sh"; '
        f'args = [ "-c" "touch {tmp_path}/built; echo > $out" ]; }}'
    )
    derivation = run("nix-instantiate", tmp_path / "evil.nix", environment=nix_environment()).stdout.strip()
    for labels in (store_path_labels([derivation, *closure.paths]), {f"{LABEL}nix-closure": derivation}):
        with refused(INVALID, derivation, "is a derivation"):
            rpc.prepare("key", labels=labels)
    assert not (tmp_path / "built").exists()
    assert list((nixsnap.root / "gcroots").iterdir()) == []


def test_refused_commit_changes_nothing(rpc, nixsnap, closure):
    """A name that is taken, or a view instead of an active snapshot: the rootfs view stays as it was."""
    rpc.nix_layer("image", closure.paths)
    active = files(rpc.prepare("container", "image"))
    shown = files(rpc.view("view", "image"))
    before = {mount.mount_id for mount in nixsnap.view_mounts()}
    with refused(EXISTS, "'image'"):
        rpc.commit("image", "container")
    with refused(PRECONDITION, "'view'"):
        rpc.commit("other", "view")
    with refused(PRECONDITION, "'image'"):
        rpc.commit("other", "image")
    assert {mount.mount_id for mount in nixsnap.view_mounts()} == before
    (active / closure.top.removeprefix("/") / "new").touch()
    assert (shown / closure.top.removeprefix("/")).exists()


def test_list_of_snapshots_with_many_labels(rpc):
    """Blocks are cut by size too: snapshots with thousands of labels each do not exceed what clients take."""
    labels = {f"{LABEL}label-{number}": "x" * 400 for number in range(5000)}
    for number in range(12):
        rpc.prepare(f"k{number:02d}", labels=labels)
    assert rpc.list() == [f"k{number:02d}" for number in range(12)]


# --- many at once, and crashes


def test_cleanup_beside_everything_else(rpc, nixsnap, closure):
    """containerd calls Cleanup after each collection, while containers start and go: it takes nothing of theirs."""
    rpc.nix_layer("image", closure.paths)
    before = everything(nixsnap.root)
    done = threading.Event()

    def clean() -> None:
        number = 0
        while not done.is_set():
            (nixsnap.root / f"snapshots/{10**9 + number}/fs").mkdir(parents=True)
            rpc.cleanup()
            number += 1

    def cycle(number: int) -> bool:
        mount = rpc.prepare(f"c{number}", "image")
        whole = len(store_names(mount)) == len(closure.paths)
        (files(mount) / closure.top.removeprefix("/") / "new").touch()
        rpc.remove(f"c{number}")
        return whole

    cleaner = threading.Thread(daemon=True, target=clean)
    cleaner.start()
    with ThreadPoolExecutor(4) as pool:
        whole = list(pool.map(cycle, range(200)))
    done.set()
    cleaner.join()
    assert all(whole)
    assert "WARNING" not in nixsnap.log_text()
    assert everything(nixsnap.root) == before


def test_many_clients_at_once(rpc, nixsnap, closure):
    """Forty containers made, used and removed by eight clients at a time leave nothing behind."""
    rpc.nix_layer("image", closure.paths)
    before = everything(nixsnap.root)

    def cycle(number: int) -> int:
        mount = rpc.prepare(f"c{number}", "image")
        (files(mount) / "mine").write_text(str(number))
        assert (files(rpc.mounts(f"c{number}")) / "mine").read_text() == str(number)
        listed = len(store_names(mount))
        rpc.remove(f"c{number}")
        return listed

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(cycle, range(40))) == {len(closure.paths)}
    assert everything(nixsnap.root) == before
    assert nixsnap.view_mounts() == []


def test_same_key_at_once(rpc, closure):
    """Of ten clients that prepare one key, one succeeds and the others hear that it exists."""
    rpc.nix_layer("image", closure.paths)

    def attempt(_: int) -> grpc.StatusCode:
        try:
            rpc.prepare("key", "image")
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(10) as pool:
        codes = sorted(pool.map(attempt, range(10)), key=lambda code: code.value[0])
    assert codes == [grpc.StatusCode.OK, *[EXISTS] * 9]


def test_killed_daemon_is_swept_at_start(directory, closure):
    """After kill -9 in the midst of work, the next start removes what no snapshot owns and keeps the rest."""
    (directory / "n").mkdir()
    daemon = NixsnapDaemon.start(directory / "n")
    with connect(daemon.address) as rpc:
        rpc.nix_layer("image", closure.paths)
        rpc.prepare("container", "image")

        def hammer() -> None:
            for number in range(100_000):
                try:
                    rpc.prepare(f"k{number}", "image")
                    rpc.remove(f"k{number}")
                except grpc.RpcError:
                    return

        threads = [threading.Thread(daemon=True, target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        threading.Event().wait(0.7)
        daemon.kill()
        for thread in threads:
            thread.join()
    (daemon.root / "snapshots/new-leftover/fs").mkdir(parents=True)
    (daemon.root / "gcroots/999999").mkdir()
    (stub_layers(daemon.root) / "888888/fs").mkdir(parents=True)
    daemon = NixsnapDaemon.start(directory / "n")
    with connect(daemon.address) as rpc:
        live = rpc.list()
        assert {"image", "container"} <= set(live)
        assert {mount.point.name for mount in daemon.view_mounts()} <= {
            path.name for path in (daemon.root / "snapshots").iterdir()
        }
        assert len(list((daemon.root / "snapshots").iterdir())) == len(live)
        assert [path.name for path in (daemon.root / "gcroots").iterdir()] == ["1"]
        assert [path.name for path in stub_layers(daemon.root).iterdir()] == ["1"]
        for key in live:
            if key != "image":
                assert len(store_names(rpc.mounts(key))) == len(closure.paths)
    daemon.destroy()


def test_second_daemon_is_refused(nixsnap, directory):
    """On the same root, and on the same socket, each with a message that says who is there and what to do."""
    program = [os.fspath(Path(shutil.which("nixsnap") or "nixsnap"))]
    same_root = run(*program, "serve", "--root", nixsnap.root, "--address", directory / "b.sock", check=False)
    assert same_root.returncode == 5
    assert f"pid {nixsnap.pid}" in same_root.stderr
    same_socket = run(*program, "serve", "--root", directory / "b", "--address", nixsnap.address, check=False)
    assert same_socket.returncode == 5
    assert "--address" in same_socket.stderr
    assert nixsnap.process.is_running()


def test_stale_socket_is_replaced(directory):
    """A socket that a killed daemon left is no obstacle; a file in its place is not ours to remove."""
    (directory / "n").mkdir()
    daemon = NixsnapDaemon.start(directory / "n")
    daemon.kill()
    assert daemon.address.is_socket()
    daemon = NixsnapDaemon.start(directory / "n")
    assert oct(daemon.address.stat().st_mode & 0o777) == "0o600"
    assert daemon.stop() == 0
    assert not daemon.address.exists()


def test_deadline_of_a_caller(rpc, nixsnap, closure):
    """A caller that goes early leaves either a whole snapshot or none, and the key can be used again."""
    rpc.nix_layer("image", closure.paths)
    for number in range(20):
        with contextlib.suppress(grpc.RpcError):  # some of them are fast enough
            rpc.prepare(f"k{number}", "image", timeout=0.0005 * (number + 1))
    rpc.prepare("after", "image")
    for key in rpc.list("kind==active"):
        rpc.mounts(key)
        rpc.remove(key)
    assert nixsnap.view_mounts() == []
