"""The store door and a rootless node: real rootlesskit, containerd, runc and Nix, and root's own store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import (
    Closure,
    Containerd,
    NixsnapDaemon,
    Node,
    Rootless,
    build_image,
    installed_program,
    load_image,
)
from lab.processes import Process, wait_until
from lab.requirements import need_containerd

REFERENCE = "lab.invalid/app:1"


@pytest.fixture
def door(directory: Path, rootless: Rootless) -> Iterator[Path]:
    """The socket of a door that root runs for the machine's store."""
    address = rootless.directory / "door.sock"
    process = Process.start(
        "store-door",
        installed_program("nixsnap"),
        "store-door",
        "--address",
        address,
        log=directory / "door.log",
    )
    process.wait_until(lambda: "serving store=/nix/store" in process.log_text(), what="serve")
    yield address
    process.stop()


@pytest.fixture
def node_with(directory: Path, rootless: Rootless) -> Callable[[str], object]:
    """Run a rootless node whose nixsnap has more lines in its configuration."""

    @contextmanager
    def start(config: str) -> Iterator[Node]:
        for name in ("nixsnap", "containerd"):
            (directory / name).mkdir()
        nixsnap = NixsnapDaemon.start(
            directory / "nixsnap", config=f"{config}\n[image_service]\nenable = false\n", place=rootless
        )
        try:
            containerd = Containerd.start(
                need_containerd("1.7"), directory / "containerd", snapshotter=nixsnap.address, place=rootless
            )
            try:
                yield Node(nixsnap=nixsnap, containerd=containerd, directory=directory)
            finally:
                containerd.stop()
        finally:
            nixsnap.destroy()

    return start


def owners(node: Node, closure: Closure) -> list[str]:
    """Owner and group of a store path, and of a file in it, in a container."""
    load_image(node.containerd, build_image(closure, node.directory / "app.tar", reference=REFERENCE))
    busybox = next(path for path in closure.paths if path.endswith("-busybox-static"))
    printed = node.containerd.run(
        REFERENCE, f"{closure.top}/bin/stat", "-c", "%u:%g", busybox, f"{busybox}/bin/busybox"
    ).stdout
    node.containerd.collect_garbage()  # else it takes its time (node/test_main_job.py)
    wait_until(lambda: node.nixsnap.view_mounts() == [], what="take the view down")
    return printed.split()


def test_store_files_are_roots_in_a_rootless_container(node_with, rootless, door, closure):
    """The very kind of view that shows the store's own owners; the store is a mount of the node's, and goes with it."""
    with node_with(f'store_view = "bind"\nstore_door = "{door}"') as node:
        assert owners(node, closure) == ["0:0", "0:0"]
        assert f"files of the store show as root's in containers store=/nix/store door={door}" in (
            node.nixsnap.log_text()
        )
        (mount,) = rootless.mounts_below(node.nixsnap.root / "store")
        assert mount.point == node.nixsnap.root / "store"
        container = node.containerd.start_container(REFERENCE, f"{closure.top}/bin/sleep", "1000")
        dependency = next(path for path in closure.paths if path.endswith("-dep-1"))
        write = f"echo x > {dependency}/share/f"
        result = node.containerd.exec(container, f"{closure.top}/bin/sh", "-c", write, check=False)
        assert "Read-only file system" in result.stderr
        # A daemon that starts anew takes the old mount off and asks again; the running container does not notice.
        node.nixsnap.kill()
        again = NixsnapDaemon.start(
            node.nixsnap.directory,
            config=f'store_view = "bind"\nstore_door = "{door}"\n[image_service]\nenable = false\n',
            place=rootless,
        )
        assert len(rootless.mounts_below(again.root / "store")) == 1
        shown = node.containerd.exec(container, f"{closure.top}/bin/stat", "-c", "%u:%g", dependency)
        assert shown.stdout == "0:0\n"
        node.containerd.remove_container(container)
        assert again.stop() == 0
        assert rootless.mounts_below(again.root / "store") == []
        assert not (again.root / "store").exists()


@pytest.mark.parametrize(
    "said", ["store_door = ''", "store_door = '/absent/door.sock'"], ids=["off", "absent"]
)
def test_without_the_door_they_are_nobodys(node_with, closure, said):
    """All else is the same; why is in the log, once."""
    with node_with(f'store_view = "bind"\n{said}') as node:
        assert owners(node, closure) == ["65534:65534", "65534:65534"]
        assert node.nixsnap.log_text().count("files of the store show as nobody's in containers") == 1


def test_data_only_views_need_no_door(node_with, rootless, closure):
    """Their stubs are the user's own; nothing is asked and nothing said."""
    with node_with('store_view = "data-only"\nstore_door = "/absent/door.sock"') as node:
        assert owners(node, closure) == ["0:0", "0:0"]
        assert "show as" not in node.nixsnap.log_text()
        assert rootless.mounts_below(node.nixsnap.root / "store") == []
