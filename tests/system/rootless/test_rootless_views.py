"""Each kind of rootfs view that there is in a user namespace, on real rootlesskit, containerd, runc and Nix."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Closure, CommandError, NixsnapDaemon, Node, Rootless, build_image, load_image, nix_closure
from lab.processes import processes_naming, wait_until
from lab.requirements import need_containerd
from rpc import connect, files, store_path_labels

from nixsnap.config import StoreView

REFERENCE = "lab.invalid/app:1"
KINDS = (StoreView.DATA_ONLY, StoreView.BIND, StoreView.FUSE)

DATA_ONLY = pytest.mark.parametrize("kind", [StoreView.DATA_ONLY], indirect=True)


@pytest.fixture
def place(rootless: Rootless) -> Rootless:
    return rootless


@pytest.fixture(params=KINDS, ids=lambda kind: kind.value)
def kind(request: pytest.FixtureRequest) -> StoreView:
    """Each kind in turn, as the configuration forces it."""
    return request.param


@pytest.fixture
def nixsnap(directory: Path, rootless: Rootless, kind: StoreView) -> Iterator[NixsnapDaemon]:
    (directory / "nixsnap").mkdir()
    config = f'store_view = "{kind.value}"\n[image_service]\nenable = false\n'
    daemon = NixsnapDaemon.start(directory / "nixsnap", config=config, place=rootless)
    yield daemon
    daemon.destroy()


@pytest.fixture
def installation():
    """One release will do: what differs between them is not views."""
    return need_containerd("1.7")


@pytest.fixture
def rpc(nixsnap: NixsnapDaemon):
    with connect(nixsnap.address) as rpc:
        yield rpc


@pytest.fixture
def loaded(node: Node, closure: Closure) -> Node:
    """The node, with a Nix image of the small closure loaded."""
    load_image(node.containerd, build_image(closure, node.directory / "app.tar", reference=REFERENCE))
    return node


@pytest.fixture
def inside(rootless: Rootless):
    """Turns a path in the node's namespaces into one that this process can follow, to look at what is there."""

    def follow(path: Path | str) -> Path:
        return Path(f"/proc/{rootless.child_pid}/root{path}")

    return follow


@pytest.fixture
def change(rootless: Rootless):
    """Runs a script in the directory that a mount shows, as root of the namespaces, and returns the lines it prints.

    The host's root has no id there, so it can write nothing, and of a file system in user space it sees nothing at all.
    """

    def run_script(mount, script: str) -> list[str]:
        return rootless.run("sh", "-euc", f"cd {files(mount)}; {script}").stdout.splitlines()

    return run_script


def names(closure: Closure) -> list[str]:
    return sorted(path.removeprefix("/nix/store/") for path in closure.paths)


def marks(directory: Path) -> set[str]:
    """The marks of overlayfs that there are below a directory."""
    return {
        name
        for path in directory.rglob("*")
        for name in os.listxattr(path, follow_symlinks=False)
        if name.startswith("user.overlay.")
    }


def change_plainly(rootless: Rootless, mount, script: str) -> None:
    """Mount what the snapshotter says, as an unpacker does, and run a script there."""
    target = rootless.home / "target"
    rootless.run("mkdir", target)
    options = ",".join(mount.options)
    if (
        mount.type == "fuse3.fuse-overlayfs"
    ):  # as containerd does (core/mount/mount_linux.go, mountWithHelper)
        rootless.run("mount.fuse3", mount.source, target, "-o", options, "-t", "fuse-overlayfs")
    else:
        rootless.run("mount", "-t", mount.type, "-o", options, mount.source, target)
    rootless.run("sh", "-c", f"cd {target} && {script}")
    rootless.run("umount", target)
    rootless.run("rmdir", target)


def wait_for_no_views(node: Node) -> None:
    node.containerd.collect_garbage()  # else it takes its time (node/test_main_job.py)
    wait_until(lambda: node.nixsnap.view_mounts() == [], what="take the views down")


# --- with containerd


def test_container_sees_exactly_its_closure(loaded, closure, kind):
    """The store in the container lists the closure, no more and no less; programs run; the log names the kind."""
    script = "ls /nix/store; cat /nix/store/*-dep-2/share/f; id -u"
    printed = loaded.containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script).stdout.splitlines()
    assert printed == [*names(closure), "2 ", "0"]
    assert f"store view kind={kind.value}" in loaded.nixsnap.log_text()
    wait_for_no_views(loaded)


def test_stat_in_the_container(loaded, closure, kind):
    """Lengths, modes and times are the store's; with data-only views files belong to root, as with a rootful daemon."""
    busybox = next(path for path in closure.paths if path.endswith("-busybox-static"))
    program = f"{busybox}/bin/busybox"
    there = Path(program).stat()
    shown = loaded.containerd.run(
        REFERENCE, f"{closure.top}/bin/stat", "-c", "%u:%g %s %a %Y", busybox, program
    ).stdout.splitlines()
    owner = "0:0" if kind is StoreView.DATA_ONLY else "65534:65534"
    assert shown[0].split()[0] == owner
    assert shown[1] == f"{owner} {there.st_size} {there.st_mode & 0o7777:o} {there.st_mtime_ns // 10**9}"


def test_mounts_of_a_container(loaded, rootless, closure, kind):
    """A running container has its view and containerd's mounts of it: one for data-only views, whatever the closure."""
    before = rootless.mount_count()
    container = loaded.containerd.start_container(REFERENCE, f"{closure.top}/bin/sleep", "1000")
    assert len(loaded.nixsnap.view_mounts()) == 1
    more = 0 if kind is StoreView.DATA_ONLY else len(closure.paths)
    # The view, the bundle's rootfs, and what runc itself brings.
    assert rootless.mount_count() - before <= 3 + more
    loaded.containerd.remove_container(container)
    wait_for_no_views(loaded)
    assert rootless.mount_count() == before


def test_writes_stay_in_the_container(loaded, closure, kind):
    """What a container writes is its own. Where the kind lets it write over a store path, that is a copy with data."""
    dependency = next(path for path in closure.paths if path.endswith("-dep-1"))
    script = f"echo y > /top; cd {dependency}; echo mine >> share/f; cat share/f; chmod 600 share/f"
    result = loaded.containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script, check=False)
    if kind is StoreView.DATA_ONLY:
        assert result.stdout == "1 \nmine\n"
    else:
        assert "Read-only file system" in result.stderr
    assert Path(dependency, "share/f").read_text() == "1 \n"
    again = loaded.containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", f"cat {dependency}/share/f; ls /")
    assert again.stdout.startswith("1 \n")
    assert "top" not in again.stdout


def test_single_file_store_paths(node):
    """Store paths that are files, also executable ones, are there with content and mode."""
    closure = nix_closure(6, kinds=("directory", "file", "executable"), salt="kinds")
    load_image(node.containerd, build_image(closure, node.directory / "app.tar", reference=REFERENCE))
    script = "cat /nix/store/*-dep-1; [ -x /nix/store/*-dep-2 ] && [ ! -x /nix/store/*-dep-1 ] && echo modes"
    assert node.containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script).stdout == "1 kinds\nmodes\n"


def test_daemon_restart_leaves_containers_alone(loaded, closure, rootless):
    """Views are the kernel's: a killed daemon takes none down, and the next one goes on with them."""
    container = loaded.containerd.start_container(REFERENCE, f"{closure.top}/bin/sleep", "1000")
    views = len(loaded.nixsnap.view_mounts())
    loaded.nixsnap.kill()
    restarted = NixsnapDaemon.start(
        loaded.nixsnap.directory,
        config=(loaded.nixsnap.directory / "nixsnap.toml").read_text(),
        place=rootless,
    )
    try:
        assert len(restarted.view_mounts()) == views
        shown = loaded.containerd.exec(container, f"{closure.top}/bin/ls", "/nix/store").stdout.split()
        assert shown == names(closure)
        loaded.containerd.remove_container(container)
        wait_until(lambda: restarted.view_mounts() == [], what="take the views down")
    finally:
        loaded.containerd.stop()
        restarted.destroy()


def test_the_user_can_delete_everything(loaded, closure, rootless):
    """With the image go its snapshots and stub layers; what is left the user deletes without the namespaces' help."""
    dependency = next(path for path in closure.paths if path.endswith("-dep-1"))
    script = f"mkdir /new; chmod 0 /new; rm -rf {dependency} || true"
    loaded.containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script)
    wait_for_no_views(loaded)
    loaded.containerd.ctr("image", "rm", "--sync", REFERENCE)
    root = loaded.nixsnap.root
    for place in ("snapshots", "work", "views", "gcroots", *(f"stubs/{kind.value}" for kind in KINDS)):
        assert not (root / place).exists() or list((root / place).iterdir()) == [], place
    loaded.containerd.stop()
    loaded.nixsnap.stop()
    assert rootless.mounts_below(root) == []
    rootless.run_outside("rm", "-r", root)
    assert not root.exists()


def test_the_kind_that_is_chosen(directory, rootless):
    """By itself the daemon takes the best kind there is and says why none better; one that does not work is refused."""
    (directory / "n").mkdir()
    NixsnapDaemon.start(directory / "n", place=rootless).destroy()
    log = (directory / "n/nixsnap.log").read_text()
    assert "store view kind=data-only reason='overlay: no trusted.* attributes in" in log
    with pytest.raises(CommandError):
        NixsnapDaemon.start(directory / "n", config='store_view = "overlay"\n', place=rootless)
    log = (directory / "n/nixsnap.log").read_text()
    assert "store_view = overlay does not work in" in log
    assert "set store_view = auto" in log


# --- without containerd: chains that it takes many steps to make


def test_layers_in_any_order(rpc, change, closure):
    """Base, nix, plain, nix: every layer's files are there, upper ones win, and closures may overlap."""
    other = nix_closure(2, salt="other")
    change(rpc.prepare("k0"), "echo base > base")
    rpc.commit("base", "k0")
    rpc.nix_layer("nix1", closure.paths, "base")
    change(rpc.prepare("k2", "nix1"), "echo changed > base; echo added > added")
    rpc.commit("plain", "k2")
    rpc.nix_layer("nix2", [*other.paths, closure.paths[0]], "plain")
    printed = change(rpc.prepare("container", "nix2"), "cat base added; ls nix/store")
    shown = sorted({Path(path).name for path in (*closure.paths, *other.paths)})
    assert printed == ["changed", "added", *shown]


@DATA_ONLY
def test_layers_that_change_a_store_path(rpc, inside, change, closure):
    """What a plain layer above a nix layer adds, changes and deletes is seen; the next nix layer shows the store's."""
    rpc.nix_layer("nix1", closure.paths)
    top, dependency = closure.top.removeprefix("/"), closure.paths[0].removeprefix("/")
    content = Path(closure.top, "dependencies").read_text()
    change(
        rpc.prepare("k1", "nix1"),
        f"cd {top}; echo a > added; echo c > dependencies; rm -r ../../../{dependency}",
    )
    rpc.commit("plain", "k1")
    root = inside(files(rpc.prepare("above", "plain")))
    assert (root / top / "added").read_text() == "a\n"
    assert (root / top / "dependencies").read_text() == "c\n"
    assert (root / top / "bin/sh").is_symlink()
    assert not (root / dependency).exists()
    rpc.nix_layer("nix2", closure.paths, "plain")
    root = inside(files(rpc.prepare("again", "nix2")))
    assert (root / dependency).is_dir()
    assert (root / top / "dependencies").read_text() == content
    # A directory of two layers is shown merged.
    assert (root / top / "added").read_text() == "a\n"


@DATA_ONLY
def test_committed_layers_hold_their_data(rpc, change, nixsnap, closure):
    """Whatever a container does to a file, its layer holds it whole, and nothing in there leads elsewhere."""
    rpc.nix_layer("image", closure.paths)
    busybox = next(path for path in closure.paths if path.endswith("-busybox-static")).removeprefix("/")
    content = Path(f"/{busybox}/bin/busybox").read_bytes()
    change(
        rpc.prepare("container", "image"),
        f"""
        ln {busybox}/bin/busybox linked
        number=0
        for file in nix/store/*/share/f; do
            number=$((number + 1))
            chmod 600 $file; touch -d @1 $file; mv $file moved-$number
        done
        mv {busybox}/bin renamed
        """,
    )
    before = rpc.usage("container").size
    rpc.commit("changed", "container")
    (layer,) = (path.parent for path in nixsnap.root.glob("snapshots/*/fs/linked"))
    assert (layer / "linked").read_bytes() == content
    assert (layer / "renamed/busybox").read_bytes() == content
    assert sorted(path.read_text() for path in layer.glob("moved-*")) == ["0 \n", "1 \n", "2 \n"]
    assert marks(layer) <= {"user.overlay.origin", "user.overlay.impure", "user.overlay.opaque"}
    assert before > len(content)
    assert rpc.usage("changed").size >= len(content)


@DATA_ONLY
def test_stubs_are_shared_between_images(rpc, inside, nixsnap, closure):
    """Two images with a store path have the same files for it; one of them goes, and the other is as it was."""
    other = nix_closure(3, salt="shares busybox")
    rpc.nix_layer("one", closure.paths)
    rpc.nix_layer("two", other.paths)
    stubs = sorted((nixsnap.root / "stubs/data-only").iterdir(), key=lambda path: int(path.name))
    busybox = next(path for path in closure.paths if path.endswith("-busybox-static"))
    assert busybox in other.paths
    program = f"{busybox}/bin/busybox".removeprefix("/")
    first, second = (stub / "fs" / program for stub in stubs)
    assert first.samefile(second)
    assert first.stat().st_blocks * 512 <= 4096, "one block of attributes at most, and no data"
    rpc.remove("one")
    assert not first.exists()
    assert second.stat().st_nlink == 1
    root = inside(files(rpc.prepare("container", "two")))
    assert (root / program).read_bytes() == Path(f"/{program}").read_bytes()
    rpc.remove("container")
    rpc.remove("two")
    assert list((nixsnap.root / "stubs/data-only").iterdir()) == []


def test_a_base_that_deleted_its_store(rpc, rootless, change, closure):
    """Below a nix layer may lie one that removed /nix, and what is unpacked upon it is opaque: nothing is hidden."""
    change(rpc.prepare("k0"), "mkdir -p nix/store/x")
    rpc.commit("store", "k0")
    change_plainly(rootless, rpc.prepare("k1", "store"), "rm -r nix")
    rpc.commit("none", "k1")
    change_plainly(
        rootless, rpc.prepare("k2", "none", store_path_labels(closure.paths)), "mkdir -p nix/store"
    )
    rpc.commit("image", "k2")
    assert change(rpc.prepare("container", "image"), "ls nix/store") == names(closure)


def test_views_are_read_only(rpc, change, rootless, nixsnap, closure):
    """A view snapshot shows the store and takes no write; it needs no work directory."""
    rpc.nix_layer("image", closure.paths)
    mount = rpc.view("view", "image")
    assert change(mount, "ls nix/store") == names(closure)
    assert "Read-only" in rootless.run("touch", files(mount) / "x", check=False).stderr
    assert list((nixsnap.root / "work").iterdir()) == []
    rpc.remove("view")
    assert nixsnap.view_mounts() == []


@pytest.mark.parametrize("kind", [StoreView.FUSE], indirect=True)
def test_a_view_whose_process_was_killed(rpc, change, nixsnap, closure):
    """The mount is there and answers nothing; Mounts makes it anew, with what had been written, and Remove takes it."""
    rpc.nix_layer("image", closure.paths)
    change(rpc.prepare("container", "image"), "echo kept > written")
    (mount,) = nixsnap.view_mounts()
    assert mount.fs_type.startswith("fuse")

    def processes() -> list[int]:
        return processes_naming(mount.point)

    (pid,) = processes()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes(), what="end")
    assert change(rpc.mounts("container"), "cat written; ls nix/store") == ["kept", *names(closure)]
    (pid,) = processes()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes(), what="end")
    rpc.remove("container")
    assert nixsnap.view_mounts() == []


@pytest.mark.parametrize("kind", [StoreView.FUSE], indirect=True)
def test_the_process_goes_with_the_view(rpc, nixsnap, closure):
    """It outlives the daemon, and ends when the view is taken down."""
    rpc.nix_layer("image", closure.paths)
    rpc.prepare("container", "image")
    (mount,) = nixsnap.view_mounts()
    (pid,) = processes_naming(mount.point)
    assert os.getpgid(pid) != os.getpgid(nixsnap.pid)
    rpc.remove("container")
    wait_until(lambda: not processes_naming(mount.point), what="end")
    assert list((nixsnap.root / "work").iterdir()) == []
