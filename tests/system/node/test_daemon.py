"""The daemon as a process: settings, signals, health, and disks that are full, read-only or too simple."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lab import CommandError, NixsnapDaemon, run
from lab.nix import nix_store
from rpc import connect, files, mounted_as_containerd, refused, store_path_labels

from nixsnap.snapshots.reserve import Reserve

NO_IMAGES = "[image_service]\nenable = false\n"


@contextmanager
def daemon_with(directory: Path, config: str = "", **options) -> Iterator[NixsnapDaemon]:
    """A running daemon with settings of its own."""
    (directory / "n").mkdir(exist_ok=True)
    daemon = NixsnapDaemon.start(directory / "n", config=config + NO_IMAGES, **options)
    try:
        yield daemon
    finally:
        daemon.destroy()


@contextmanager
def mounted(directory: Path, kind: str, *options: str) -> Iterator[Path]:
    """A file system of its own, mounted on `directory`."""
    directory.mkdir()
    run("mount", "-t", kind, *options, kind, directory)
    try:
        yield directory
    finally:
        run("umount", directory)


def builder(directory: Path, script: str) -> str:
    """Configuration that names an external builder, which is this shell script."""
    program = directory / "builder"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f'external_builder = "{program}"\n'


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 4096)


def names(paths) -> set[str]:
    return {Path(path).name for path in paths}


def listed(mount) -> set[str]:
    return {path.name for path in (files(mount) / "nix/store").iterdir()}


def test_health_service(nixsnap):
    """grpc.health.v1 says SERVING for the whole and for the snapshots service."""
    with grpc.insecure_channel(f"unix://{nixsnap.address}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "containerd.services.snapshots.v1.Snapshots"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_clients_that_watch_do_not_hold_up_the_end(nixsnap):
    """Watching is all that health checks of other programs do (gRPC's health checking protocol)."""
    with grpc.insecure_channel(f"unix://{nixsnap.address}") as channel:
        told = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(told).status == health_pb2.HealthCheckResponse.SERVING
        assert nixsnap.stop() == 0
        assert [answer.status for answer in told] == [health_pb2.HealthCheckResponse.NOT_SERVING]


def test_socket_and_root_are_roots_alone(nixsnap):
    """Whoever reaches the socket mounts file systems, and layers hold setuid programs of every age."""
    assert oct(nixsnap.address.stat().st_mode & 0o777) == "0o600"
    assert oct(nixsnap.root.stat().st_mode & 0o777) == "0o700"


def test_sigterm_lets_a_call_finish(directory, closure):
    """A pull that is under way when the daemon is told to stop is finished and acknowledged."""
    config = builder(directory, f"touch {directory}/begun; sleep 1; mkdir -p $(dirname $1); ln -s $2 $1")
    with daemon_with(directory, config) as daemon, connect(daemon.address) as rpc:
        results: list[object] = []
        labels = store_path_labels([closure.top])
        call = threading.Thread(daemon=True, target=lambda: results.append(rpc.prepare("key", labels=labels)))
        call.start()
        while not (directory / "begun").exists():
            time.sleep(0.01)
        assert daemon.stop() == 0
        call.join()
        assert len(results) == 1


def test_external_builder(directory, closure):
    """PROGRAM OUT-LINK STORE-PATH for each path; what it links is the root that keeps the path."""
    config = builder(directory, f'echo "$1 $2" >> {directory}/calls; ln -s "$2" "$1"')
    with daemon_with(directory, config) as daemon, connect(daemon.address) as rpc:
        rpc.nix_layer("image", closure.paths)
        assert listed(rpc.prepare("container", "image")) == names(closure.paths)
        calls = dict(line.split()[::-1] for line in (directory / "calls").read_text().splitlines())
        assert set(calls) == set(closure.paths)
        assert {str(Path(link).parent) for link in calls.values()} == {f"{daemon.root}/gcroots/1"}


def test_external_builder_that_fails_loudly(directory, closure):
    """Megabytes on standard error wedge nothing, and the last of them is what the client hears."""
    config = builder(
        directory, "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo it rains >&2; exit 3"
    )
    with daemon_with(directory, config) as daemon, connect(daemon.address) as rpc:
        with refused(grpc.StatusCode.UNAVAILABLE, "exit status 3", "it rains"):
            rpc.prepare("key", labels=store_path_labels([closure.top]))
        assert rpc.list() == []
        assert list((daemon.root / "gcroots").iterdir()) == []


def test_bind_views(directory, closure, tmp_path):
    """`store_view = bind`: containerd is told to mount each store path that is a directory; symlinks stay."""
    (tmp_path / "to-etc").symlink_to("/etc")
    symlink = nix_store("--add", str(tmp_path / "to-etc"))[0]
    with daemon_with(directory, 'store_view = "bind"\n') as daemon, connect(daemon.address) as rpc:
        assert "store view kind=bind" in daemon.log_text()
        rpc.nix_layer("image", [*closure.paths, symlink])
        mount = rpc.prepare("container", "image")
        assert listed(mount) == names([*closure.paths, symlink])
        assert (files(mount) / symlink.removeprefix("/")).is_symlink()
        first, *within = rpc.all_mounts("container")
        assert list(first.options) == ["rw", "bind"]
        assert [mount.target for mount in within] == sorted(closure.paths)
        assert {(mount.type, mount.source == mount.target, *mount.options) for mount in within} == {
            ("bind", True, "ro", "bind")
        }
        assert len(daemon.view_mounts()) == 1
        with mounted_as_containerd(rpc.all_mounts("container"), directory / "target") as root:
            assert (root / closure.top.removeprefix("/") / "bin/sh").is_symlink()
            with pytest.raises(OSError, match="Read-only"):
                (root / closure.top.removeprefix("/") / "x").touch()
        rpc.remove("container")
        assert daemon.view_mounts() == []


def test_bind_views_mount_nothing_through_a_layers_symlink(directory, closure, tmp_path):
    """A layer above the nix layer may put a symlink in the store's place; nothing is mounted where it leads."""
    victim = tmp_path / "victim/store"
    for name in names(closure.paths):
        (victim / name).mkdir(parents=True)
    with daemon_with(directory, 'store_view = "bind"\n') as daemon, connect(daemon.address) as rpc:
        rpc.nix_layer("image", closure.paths)
        root = files(rpc.prepare("k", "image"))
        shutil.rmtree(root / "nix")
        (root / "nix").symlink_to(tmp_path / "victim")
        rpc.commit("evil", "k")
        rpc.prepare("container", "evil")
        assert len(rpc.all_mounts("container")) == 1


def test_readonly_store(directory, closure):
    """`readonly_store = true`: one mount more, and not even a copy of a store file can be made; containers start."""
    with daemon_with(directory, "readonly_store = true\n") as daemon, connect(daemon.address) as rpc:
        rpc.nix_layer("image", closure.paths)
        rpc.prepare("container", "image")
        with mounted_as_containerd(rpc.all_mounts("container"), directory / "target") as root:
            with pytest.raises(OSError, match="Read-only"):
                (root / closure.top.removeprefix("/") / "dependencies").write_text("x")
            (root / "elsewhere").touch()
        assert len(rpc.all_mounts("container")) == 2
        rpc.remove("container")
        assert daemon.view_mounts() == []


def add_stand_in(store: Path, name: str, *, mtime: int = 0) -> Path:
    """An empty store directory as nix layers have them, and layers of ordinary images with another time."""
    (store / name).mkdir(parents=True)
    os.utime(store / name, (mtime, mtime))
    return store / name


def test_inference_can_be_turned_off(directory, closure):
    """`infer_nix_layers = false`: a layer of empty store directories is what it is."""
    with daemon_with(directory, "infer_nix_layers = false\n") as daemon, connect(daemon.address) as rpc:
        add_stand_in(files(rpc.prepare("k")) / "nix/store", Path(closure.top).name)
        rpc.commit("layer", "k")
        rpc.prepare("container", "layer")
        assert daemon.view_mounts() == []


def test_inference(nixsnap, closure):
    """Without annotations, a layer of empty store directories becomes a nix layer at Commit."""
    with connect(nixsnap.address) as rpc:
        store = files(rpc.prepare("k")) / "nix/store"
        for path in closure.paths:
            add_stand_in(store, Path(path).name)
        rpc.commit("layer", "k")
        assert listed(rpc.prepare("container", "layer")) == names(closure.paths)
        assert len(nixsnap.view_mounts()) == 1


@pytest.mark.parametrize(
    "content", ["a file", "a directory with content", "a name that is none", "an empty store path of its own"]
)
def test_layers_that_only_look_similar(nixsnap, closure, content):
    """A layer with content in its store is no nix layer."""
    with connect(nixsnap.address) as rpc:
        store = files(rpc.prepare("k")) / "nix/store"
        directory = add_stand_in(store, Path(closure.top).name)
        if content == "a file":
            (store / Path(closure.paths[0]).name).write_text("content")
        elif content == "a name that is none":
            add_stand_in(store, "lost+found")
        elif content == "a directory with content":
            (directory / "bin").mkdir()
            os.utime(directory, (0, 0))
        else:
            os.utime(directory, (1, 1))  # as dockerTools writes Nix's files
        rpc.commit("layer", "k")
        rpc.prepare("container", "layer")
        assert nixsnap.view_mounts() == []


def test_stores_elsewhere(directory, closure, tmp_path):
    """`store_root`: the store lies under a prefix, containers see it in /nix/store; Nix is an external builder here."""
    elsewhere = tmp_path / "elsewhere/nix/store"
    elsewhere.mkdir(parents=True)
    for path in closure.paths:
        run("cp", "-a", path, elsewhere)
    top = Path(closure.top).name
    (elsewhere / top / "only-here").touch()
    config = builder(directory, 'ln -s "$2" "$1"') + f'store_root = "{tmp_path}/elsewhere"\n'
    with daemon_with(directory, config) as daemon, connect(daemon.address) as rpc:
        rpc.nix_layer("image", closure.paths)
        assert listed(rpc.prepare("container", "image")) == names(closure.paths)
        (view,) = [mount for mount in daemon.view_mounts() if mount.fs_type == "overlay"]
        assert (view.point / "fs/nix/store" / top / "only-here").exists()


def test_full_disk(directory, closure):
    """With no room left a snapshot is refused as ResourceExhausted; what there was works on, and again with room."""
    with (
        mounted(directory / "small", "tmpfs", "-o", "size=2m") as small,
        daemon_with(directory, root=small / "root") as daemon,
        connect(daemon.address) as rpc,
    ):
        rpc.nix_layer("image", closure.paths)
        fill(small / "filler")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            for number in range(100):
                rpc.prepare(f"k{number}", "image", labels={"x": "y" * 3000})
        assert rpc.stat("image").name == "image"
        (small / "filler").unlink()
        live = rpc.list()
        assert len(list((daemon.root / "snapshots").iterdir())) == len(live)
        rpc.prepare("after", "image")
        for key in rpc.list("kind==active"):
            rpc.remove(key)


def test_removal_on_a_full_disk(directory, closure):
    """Deleting takes room first; a reserve is given up for it, so that a full disk can be emptied."""
    with (
        mounted(directory / "small", "tmpfs", "-o", "size=8m") as small,
        daemon_with(directory, root=small / "root") as daemon,
        connect(daemon.address) as rpc,
    ):
        rpc.nix_layer("image", closure.paths)
        fill(files(rpc.prepare("container", "image")) / "filler")
        fill(small / "filler")
        rpc.remove("container")
        assert daemon.view_mounts() == []
        assert rpc.list() == ["image"]
        rpc.prepare("again", "image")
        rpc.remove("again")


def test_trial_mounts_of_a_killed_daemon(directory):
    """One that is killed while it finds out what works here leaves a mount, which the next start takes down."""
    left = directory / "root/.probe-killed"
    target = left / "target"
    target.mkdir(parents=True)
    for _ in range(2):
        run("mount", "-t", "tmpfs", "tmpfs", target)
    with daemon_with(directory, root=directory / "root"):
        assert not left.exists()
    assert str(target) not in Path("/proc/self/mountinfo").read_text()


def test_no_inode_for_the_reserve(directory):
    """A removal has succeeded by the time that the reserve is filled again, whatever the disk has no room for."""
    with mounted(directory / "small", "tmpfs", "-o", "nr_inodes=1") as small:
        reserve = Reserve(small / "reserve")
        reserve.refill()
        assert not (small / "reserve").exists()
        run("mount", "-o", "remount,nr_inodes=9", small)
        reserve.refill()
        assert (small / "reserve").stat().st_size == 1 << 20


def test_shutdown_is_bounded(directory, closure):
    """A call whose client has gone and whose builder hangs does not hold up the end; nothing it started is left."""
    config = builder(directory, f"trap '' TERM; echo $$ > {directory}/pid; sleep 1000 & wait; sleep 1000")
    with daemon_with(directory, config) as daemon, connect(daemon.address) as rpc:
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            rpc.prepare("key", labels=store_path_labels([closure.top]), timeout=1.0)
        pid = int((directory / "pid").read_text())
        daemon.process.stop(timeout_seconds=40)
        assert not daemon.process.is_running()
        assert not Path(f"/proc/{pid}/cmdline").exists()
        assert "stopped" in daemon.log_text()


def test_builder_that_leaves_a_process_behind(directory, closure):
    """What a builder leaves running, with our pipe in its hands, does not hold up the call (ssh's ControlPersist)."""
    config = builder(
        directory, f"mkdir -p $(dirname $1); ln -s $2 $1; setsid sleep 1000 & echo $! > {directory}/pid"
    )
    with daemon_with(directory, config) as daemon, connect(daemon.address) as rpc:
        try:
            rpc.prepare("key", labels=store_path_labels([closure.top]))  # its deadline is a minute
        finally:
            os.kill(int((directory / "pid").read_text()), signal.SIGKILL)


def test_read_only_root(directory):
    """A daemon whose root cannot be written says so and does not start."""
    with mounted(directory / "ro", "tmpfs", "-o", "ro") as root:
        result = run(
            shutil.which("nixsnap"),
            "serve",
            "--root",
            root / "root",
            "--address",
            directory / "s",
            check=False,
        )
        assert result.returncode == 1
        assert "Read-only file system" in result.stderr
        assert str(root) in result.stderr


def test_root_without_trusted_attributes(directory, closure):
    """On a file system without trusted.* attributes (ramfs) `auto` names its reason and binds; `overlay` is refused."""
    with mounted(directory / "ramfs", "ramfs") as root:
        with daemon_with(directory, root=root / "root") as daemon, connect(daemon.address) as rpc:
            assert "store view kind=bind reason=" in daemon.log_text()
            rpc.nix_layer("image", closure.paths)
            assert listed(rpc.view("view", "image")) == names(closure.paths)
        with pytest.raises(CommandError):
            NixsnapDaemon.start(
                directory / "n", root=root / "other", config='store_view = "overlay"\n' + NO_IMAGES
            )
        assert "store_view = overlay does not work" in (directory / "n/nixsnap.log").read_text()


def test_bad_configuration_names_the_key(directory):
    """A key that does not exist ends the start with exit code 2 and one line."""
    (directory / "c.toml").write_text("adress = 1\n")
    result = run(shutil.which("nix-snapshotter"), "--config", directory / "c.toml", check=False)
    assert result.returncode == 2
    assert "unknown key 'adress'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_restart_counts_on_nothing_in_memory(directory, closure):
    """Snapshots, closures and labels are as they were after a stop, and after a kill."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        with daemon_with(directory) as daemon, connect(daemon.address) as rpc:
            if end is signal.SIGTERM:
                rpc.nix_layer("image", closure.paths)
                rpc.prepare("container", "image", labels={"a": "b"})
            assert rpc.list() == ["container", "image"]
            assert rpc.stat("container").labels == {"a": "b"}
            assert listed(rpc.mounts("container")) == names(closure.paths)
            daemon.kill() if end is signal.SIGKILL else daemon.stop()


def test_no_child_is_left_by_a_killed_daemon(directory, closure):
    """A fetch that a kill -9 orphaned does no harm: the retry starts clean and succeeds."""
    config = builder(directory, f"[ -e {directory}/fast ] || sleep 3; mkdir -p $(dirname $1); ln -sfn $2 $1")
    labels = store_path_labels([closure.top])

    def prepare_in_vain() -> None:
        with pytest.raises(grpc.RpcError):
            rpc.prepare("key", labels=labels)

    with daemon_with(directory, config) as daemon, connect(daemon.address) as rpc:
        call = threading.Thread(daemon=True, target=prepare_in_vain)
        call.start()
        time.sleep(0.3)
        daemon.kill()
        call.join()
    (directory / "fast").touch()
    with daemon_with(directory, config) as daemon, connect(daemon.address) as rpc:
        assert rpc.list() == []
        rpc.prepare("key", labels=labels)
        rpc.commit("image", "key")
        assert listed(rpc.prepare("container", "image")) == {Path(closure.top).name}
