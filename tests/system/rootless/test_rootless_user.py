"""What a plain user gets, beyond the main job (`node/test_main_job.py`, which runs as a plain user as well)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from lab import Closure, Containerd, NixsnapDaemon, Node, Rootless, build_image, load_image
from lab.processes import wait_until
from lab.requirements import need_containerd

REFERENCE = "lab.invalid/app:1"
NO_IMAGES = "[image_service]\nenable = false\n"


@pytest.fixture
def place(rootless: Rootless) -> Rootless:
    return rootless


@pytest.fixture
def installation():
    """One release will do: the main job runs on all."""
    return need_containerd("1.7")


@pytest.fixture
def loaded(node: Node, closure: Closure) -> Node:
    """The node, with a Nix image of the small closure loaded."""
    load_image(node.containerd, build_image(closure, node.directory / "app.tar", reference=REFERENCE))
    return node


def test_commit(loaded: Node, rootless: Rootless, closure: Closure):
    """What a container wrote, over a store path too, is committed, and seen in what is made of that."""
    dependency = next(path for path in closure.paths if path.endswith("-dep-1"))
    script = f"echo mine > {dependency}/share/f; echo kept > /kept; rm -r {dependency}/../*-dep-2"
    ctr = loaded.containerd.ctr
    ctr("run", "--snapshotter", "nix", REFERENCE, "first", f"{closure.top}/bin/sh", "-c", script)
    ctr("snapshots", "--snapshotter", "nix", "commit", "saved", "first")
    ctr("snapshots", "--snapshotter", "nix", "prepare", "second", "saved")
    target = rootless.subdirectory("target")
    mounting = ctr("snapshots", "--snapshotter", "nix", "mounts", target, "second").stdout
    shown = rootless.run(
        "unshare", "--mount", "sh", "-euc",
        f"{mounting}\ncat {target}{dependency}/share/f {target}/kept; ls {target}/nix/store",
    )  # fmt: skip
    first, second, *listed = shown.stdout.split()
    assert (first, second) == ("mine", "kept")
    assert len(listed) == len(closure.paths) - 1
    assert Path(dependency, "share/f").read_text() == "1 \n"


def test_nothing_is_left_that_the_user_cannot_delete(loaded: Node, rootless: Rootless, closure: Closure):
    """Files of other ids, unreadable directories: with containers and image all goes, and no mount stays."""
    script = (
        "mkdir -p /d/e; echo x > /d/e/f; chown -R 1234:1234 /d; chmod 000 /d/e; chown 99 /nix/store/*-dep-0"
    )
    loaded.containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script)
    long = loaded.containerd.start_container(
        REFERENCE, f"{closure.top}/bin/sh", "-c", f"{script}; exec sleep 1000"
    )
    wait_until(lambda: list(loaded.nixsnap.root.glob("snapshots/*/fs/d/e/f")) != [], what="write")
    loaded.containerd.remove_container(long)
    loaded.containerd.ctr("image", "rm", "--sync", REFERENCE)
    loaded.containerd.collect_garbage()
    assert rootless.mounts_below(loaded.nixsnap.root) == []
    assert list((loaded.nixsnap.root / "snapshots").iterdir()) == []
    loaded.nixsnap.stop()
    rootless.run_outside("rm", "-r", loaded.nixsnap.root)  # without --force: it must not even ask
    assert not loaded.nixsnap.root.exists()


def test_store_is_read_only_to_others(loaded: Node, rootless: Rootless, closure: Closure):
    """Nobody but root of the container can write in its store; root of the namespaces cannot in the host's."""
    script = f"touch /nix/store/x; touch {closure.top}/x; rm -r /nix/store/*-dep-0; ls /nix/store"
    result = loaded.containerd.run(
        REFERENCE, f"{closure.top}/bin/sh", "-c", script, options=["--user", "1234:1234"]
    )
    assert result.stderr.count("Permission denied") >= 3
    assert len(result.stdout.split()) == len(closure.paths)
    assert "denied" in rootless.run("touch", f"{closure.top}/x", check=False).stderr


@pytest.fixture
def own_store(rootless: Rootless, closure: Closure) -> Path:
    """A store in the user's home, where Nix itself makes one, with the closure in it."""
    root = rootless.home / ".local/share/nix/root"
    copy = ("nix", "--extra-experimental-features", "nix-command", "copy", "--no-check-sigs")
    rootless.run_outside(*copy, "--to", root, closure.info)
    return root


def run_node(rootless: Rootless, closure: Closure, config: str, environment: Mapping[str, str]) -> str:
    """Load and run an image on a node that has its store elsewhere, and return what it prints."""
    nixsnap = NixsnapDaemon.start(
        rootless.subdirectory("own-nixsnap"),
        config=config + NO_IMAGES,
        place=rootless,
        environment=environment,
    )
    containerd = Containerd.start(
        need_containerd("1.7"),
        rootless.subdirectory("own-containerd"),
        snapshotter=nixsnap.address,
        place=rootless,
    )
    try:
        archive = build_image(closure, rootless.directory / "app.tar", reference=REFERENCE)
        load_image(containerd, archive)
        script = f"cat {closure.top}/dependencies; ls -n /nix/store"
        return containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script).stdout
    finally:
        containerd.stop()
        nixsnap.destroy()


# As a user has it, who does not think of Nix's group of build users; the store that is asked is not the daemon's.
OWN = {"NIX_CONFIG": "", "NIX_REMOTE": ""}


def assert_root_owns(printed: str, closure: Closure) -> None:
    """The store of the user's own looks like root's in the container."""
    rows = [line.split() for line in printed.splitlines() if line[0] in "dl-" and not line.startswith("/")]
    assert sorted(row[8] for row in rows) == sorted(Path(path).name for path in closure.paths)
    assert {(row[2], row[3]) for row in rows} == {("0", "0")}


def test_store_in_the_home(rootless: Rootless, closure: Closure, own_store: Path):
    """`store_root`: the host's own store is not used at all."""
    printed = run_node(rootless, closure, f'store_root = "{own_store}"\n', OWN)
    assert_root_owns(printed, closure)


def test_single_user_store(rootless: Rootless, closure: Closure, own_store: Path):
    """A single-user Nix: /nix is the user's, and no daemon is there."""
    rootless.run("mount", "--bind", own_store / "nix", "/nix")
    try:
        printed = run_node(rootless, closure, "", OWN)
    finally:
        rootless.run("umount", "/nix")
    assert_root_owns(printed, closure)
