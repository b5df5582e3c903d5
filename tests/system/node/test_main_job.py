"""The main job on real containerd, runc and Nix, as root and as a plain user: an image is built, loaded and run."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import Closure, build_image, load_image, nix_closure
from lab.place import HOST, Place
from lab.processes import wait_until

REFERENCE = "lab.invalid/app:1"


@pytest.fixture(params=["host", "rootless"])
def place(request: pytest.FixtureRequest) -> Place:
    """Root's node on the host, and a plain user's in rootlesskit's namespaces."""
    return HOST if request.param == "host" else request.getfixturevalue("rootless")


@pytest.fixture
def loaded(node, closure):
    """The node, with a Nix image of the small closure loaded."""
    archive = build_image(closure, node.directory / "app.tar", reference=REFERENCE)
    load_image(node.containerd, archive)
    return node


def wait_for_no_views(node) -> None:
    """containerd removes a container's snapshot by its garbage collector.

    Which by itself waits 49 times as long as its last runs took (`pause_threshold`), on a busy machine half a minute.
    """
    node.containerd.collect_garbage()
    wait_until(lambda: node.nixsnap.view_mounts() == [], what="take the views down")


def names(closure: Closure) -> list[str]:
    return sorted(path.removeprefix("/nix/store/") for path in closure.paths)


def test_container_sees_exactly_its_closure(loaded, closure):
    """The store in the container lists the closure, no more and no less, and its files are there."""
    result = loaded.containerd.run(
        REFERENCE, f"{closure.top}/bin/sh", "-c", "ls /nix/store; cat /nix/store/*-dep-2/share/f"
    )
    *listed, content = result.stdout.splitlines()
    assert listed == names(closure)
    assert content == "2 "
    wait_for_no_views(loaded)


def test_one_mount_on_the_host(loaded, closure):
    """A running container has its rootfs view and containerd's bind mount of it, whatever the closure."""
    before = loaded.place.mount_count()
    container = loaded.containerd.start_container(REFERENCE, f"{closure.top}/bin/sleep", "1000")
    assert len(loaded.nixsnap.view_mounts()) == 1
    # The view, the bundle's rootfs, and what runc itself brings (a shim's own mounts do not depend on us).
    assert loaded.place.mount_count() - before <= 3
    loaded.containerd.remove_container(container)
    wait_for_no_views(loaded)
    assert loaded.place.mount_count() == before


def test_containerd_is_given_exactly_one_mount(loaded, closure):
    """What the snapshotter hands out is one bind mount of the view, so any containerd and any shim can take it."""
    container = loaded.containerd.start_container(REFERENCE, f"{closure.top}/bin/sleep", "1000")
    shown = loaded.containerd.ctr(
        "snapshot", "--snapshotter", "nix", "mounts", "/target", container
    ).stdout.split()
    assert shown[:3] == ["mount", "-t", "bind"]
    assert shown.count("mount") == 1
    loaded.containerd.remove_container(container)


def test_writes_stay_in_the_container(loaded, closure):
    """A container may write over a store path; the host's store and the next container do not see it."""
    dependency = next(path for path in closure.paths if path.endswith("-dep-1"))
    script = f"cd {dependency}; echo mine > share/f; cat share/f; echo x > new; echo y > /top"
    assert loaded.containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script).stdout == "mine\n"
    assert Path(dependency, "share/f").read_text() == "1 \n"
    again = loaded.containerd.run(
        REFERENCE, f"{closure.top}/bin/sh", "-c", f"cat {dependency}/share/f; ls / {dependency}"
    )
    assert again.stdout.startswith("1 \n")
    assert "new" not in again.stdout
    assert "top" not in again.stdout


def test_two_containers_of_one_image(loaded, closure):
    """Views share every layer but the upper one; one container's removal leaves the other alone."""
    first = loaded.containerd.start_container(REFERENCE, f"{closure.top}/bin/sleep", "1000")
    second = loaded.containerd.start_container(REFERENCE, f"{closure.top}/bin/sleep", "1000")
    loaded.containerd.exec(first, f"{closure.top}/bin/sh", "-c", "echo one > /mark")
    loaded.containerd.remove_container(first)
    assert "mark" not in loaded.containerd.exec(second, f"{closure.top}/bin/ls", "/").stdout.split()
    assert loaded.containerd.exec(second, f"{closure.top}/bin/ls", "/nix/store").stdout.split() == names(
        closure
    )
    loaded.containerd.remove_container(second)


def test_load_again_changes_nothing(loaded):
    """Loading is idempotent: the same snapshots, and not one new file."""
    before = sorted(loaded.nixsnap.root.glob("snapshots/*"))
    load_image(loaded.containerd, loaded.directory / "app.tar")
    assert sorted(loaded.nixsnap.root.glob("snapshots/*")) == before


def test_daemon_restart_leaves_containers_alone(loaded, closure):
    """Views are the kernel's: a stopped or killed daemon takes none down, and the next one goes on with them."""
    container = loaded.containerd.start_container(REFERENCE, f"{closure.top}/bin/sleep", "1000")
    loaded.nixsnap.stop()
    assert loaded.containerd.exec(container, f"{closure.top}/bin/cat", f"{closure.top}/dependencies").stdout
    assert len(loaded.nixsnap.view_mounts()) == 1
    restarted = type(loaded.nixsnap).start(loaded.nixsnap.directory, place=loaded.place)
    try:
        assert len(restarted.view_mounts()) == 1
        assert loaded.containerd.exec(
            container, f"{closure.top}/bin/ls", "/nix/store"
        ).stdout.split() == names(closure)
        loaded.containerd.remove_container(container)

        def runs() -> bool:
            shown = loaded.containerd.run(REFERENCE, f"{closure.top}/bin/ls", "/nix/store", check=False)
            return shown.stdout.split() == names(closure)

        # containerd 1.6 waits a moment before it calls a proxy again that was away, and what its collector could not
        # remove meanwhile it removes after the next container.
        wait_until(runs, what="run a container again")
        wait_until(lambda: restarted.view_mounts() == [], what="take the views down")
    finally:
        loaded.containerd.stop()
        restarted.destroy()


def test_image_removal_leaves_nothing(loaded):
    """With the image go its snapshots, stub layers and roots."""
    loaded.containerd.ctr("image", "rm", "--sync", REFERENCE)
    root = loaded.nixsnap.root
    places = [root / name for name in ("snapshots", "work", "views", "gcroots")]
    for place in [*places, *filter(Path.is_dir, (root / "stubs").iterdir())]:
        assert list(place.iterdir()) == [], place


def test_legacy_annotations(node, closure):
    """An image that names its store paths one by one, as upstream 0.2 and earlier made them."""
    archive = build_image(
        closure, node.directory / "app.tar", reference=REFERENCE, options=["--annotations", "legacy"]
    )
    load_image(node.containerd, archive)
    assert node.containerd.run(REFERENCE, f"{closure.top}/bin/ls", "/nix/store").stdout.split() == names(
        closure
    )


def test_import_without_annotations(node, closure):
    """`ctr image import` passes no annotation on; the nix layer is recognised by its content and runs all the same."""
    archive = build_image(closure, node.directory / "app.tar", reference=REFERENCE)
    # The client of 2.x leaves the unpacking to containerd's transfer service, which needs configuration for it.
    local = ["--local"] if node.containerd.installation.series == "2" else []
    node.containerd.ctr("image", "import", *local, "--snapshotter", "nix", archive)
    assert node.containerd.run(REFERENCE, f"{closure.top}/bin/ls", "/nix/store").stdout.split() == names(
        closure
    )
    assert "inferred" in node.nixsnap.log_text()


def test_single_file_store_paths(node):
    """Store paths that are files, also executable ones, are there with content and mode."""
    closure = nix_closure(6, kinds=("directory", "file", "executable"), salt="kinds")
    load_image(node.containerd, build_image(closure, node.directory / "app.tar", reference=REFERENCE))
    script = "cat /nix/store/*-dep-1; [ -x /nix/store/*-dep-2 ] && [ ! -x /nix/store/*-dep-1 ] && echo modes"
    assert node.containerd.run(REFERENCE, f"{closure.top}/bin/sh", "-c", script).stdout == "1 kinds\nmodes\n"


def test_readonly_rootfs(loaded, closure):
    """`ctr run --read-only`: the store is seen, and nothing can be written."""
    result = loaded.containerd.run(
        REFERENCE,
        f"{closure.top}/bin/sh",
        "-c",
        "ls /nix/store; echo x > /nix/store/x",
        options=["--read-only"],
        check=False,
    )
    assert result.stdout.split() == names(closure)
    assert "Read-only file system" in result.stderr


def test_mounts_inside_do_not_reach_the_host(loaded, closure):
    """The container's own mount table shows one mount for its root and none for store paths."""
    table = loaded.containerd.run(REFERENCE, f"{closure.top}/bin/cat", "/proc/self/mountinfo").stdout
    assert [line.split()[4] for line in table.splitlines()].count("/") == 1
    assert not [line for line in table.splitlines() if line.split()[4].startswith("/nix")]


ACCOUNTS = """
$builder mkdir -p $out/etc
echo app:x:1234:1234::/:/bin/sh > $out/etc/passwd
"""


@pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)  # ctr of 1.6 has no --user
def test_user_lookup(node):
    """`ctr run --user NAME` reads the rootfs' /etc/passwd before there is a container: one mount makes that work."""
    account = nix_closure(1, name="accounts", script=ACCOUNTS)
    archive = build_image(
        account, node.directory / "app.tar", reference=REFERENCE, copy_to_root=[account.top]
    )
    load_image(node.containerd, archive)
    assert (
        node.containerd.run(REFERENCE, f"{account.top}/bin/id", "-u", options=["--user", "app"]).stdout
        == "1234\n"
    )


def test_no_mounts_below_the_root_at_the_end(loaded, closure):
    """A run that is over leaves no mount of any kind below the snapshotter's root."""
    loaded.containerd.run(REFERENCE, f"{closure.top}/bin/true")
    wait_for_no_views(loaded)
    assert loaded.place.mounts_below(loaded.nixsnap.root) == []
