"""Containers with user namespaces of their own, as `ctr run --uidmap --gidmap --remap-labels` starts them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from lab import (
    Closure,
    Containerd,
    NixsnapDaemon,
    build_image,
    build_plain_image,
    load_image,
    mount_count,
    nix_closure,
)
from lab.processes import CommandError, wait_until

REFERENCE = "lab.invalid/userns:1"
PLAIN = "lab.invalid/userns-plain:1"

# `ctr` of 1.6 knows no --remap-labels, that of 1.7 takes one range each, and containerd 1.7 cannot map by itself.
since_1_7 = pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)
kinds = pytest.mark.parametrize("store_view", ["overlay", "data-only", "bind"])
since_2 = pytest.mark.parametrize("installation", ["2"], indirect=True)


def mapped(first: int) -> list[str]:
    """Options of `ctr run` for a container whose root is this user outside, and the next one's group."""
    return ["--uidmap", f"0:{first}:65536", "--gidmap", f"0:{first + 1}:65536", "--remap-labels"]


@pytest.fixture(scope="session")
def app() -> Closure:
    return nix_closure(3, name="userns-app", salt="userns")


@pytest.fixture
def loaded(node, app):
    """The node, with a Nix image loaded. runc looks a container's root directory up with the mapped ids."""
    for directory in (node.directory, node.directory.parent):
        directory.chmod(0o711)
    load_image(node.containerd, build_image(app, node.directory / "app.tar", reference=REFERENCE))
    return node


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def start(node, app: Closure, first: int) -> str:
    return node.containerd.start_container(REFERENCE, f"{app.top}/bin/sleep", "1000", options=mapped(first))


def sh(node, app: Closure, container: str, script: str) -> str:
    return node.containerd.exec(container, f"{app.top}/bin/sh", "-c", script).stdout


def uppers(node) -> set[Path]:
    return set(node.nixsnap.root.glob("snapshots/*/fs"))


@since_1_7
@kinds
def test_everything_belongs_to_root_inside(loaded, app):
    """Programs that check owners are content: the root directory, the store, its paths and what is in them."""
    # Of what runc mounts over it, find shows the mount points; sysfs belongs to the host's root.
    look = "find / /nix/store/* -xdev ! -user 0; find / /nix/store/* -xdev ! -group 0"
    script = f"id -u; stat -c %u:%g / /nix/store; {look}; cat /proc/self/uid_map"
    result = loaded.containerd.run(REFERENCE, f"{app.top}/bin/sh", "-c", script, options=mapped(100_000))
    *seen, ids = result.stdout.splitlines()
    assert [line for line in seen if line not in {"/sys", "/proc"}] == ["0", "0:0", "0:0"]
    assert ids.split() == ["0", "100000", "65536"]


@since_1_7
@pytest.mark.parametrize("store_view", ["overlay", "data-only"])
def test_writes_belong_to_the_mapped_ids_outside(loaded, app):
    """New files, files of other users, and a store path that is written over; the store itself never changes."""
    before = uppers(loaded)
    container = start(loaded, app, 100_000)
    (upper,) = uppers(loaded) - before
    dependency = next(path for path in app.paths if path.endswith("-dep-1"))
    script = "echo x > /new; echo y > /user; chown 7:8 /user; echo mine > share/f; cat share/f"
    assert sh(loaded, app, container, f"cd {dependency}; {script}") == "mine\n"
    assert owner(upper) == owner(upper / "new") == (100_000, 100_001)
    assert owner(upper / "user") == (100_007, 100_009)
    assert owner(upper / dependency.removeprefix("/") / "share/f") == (100_000, 100_001)
    assert Path(dependency, "share/f").read_text() != "mine\n"
    assert owner(Path(dependency)) == (0, 0)
    loaded.containerd.remove_container(container)


@since_1_7
@pytest.mark.parametrize("store_view", ["bind"])
def test_store_paths_that_are_mounts_stay_read_only(loaded, app):
    """The mapped root passes for their owner, and yet can neither write there nor have them mounted writable."""
    before = uppers(loaded)
    container = start(loaded, app, 100_000)
    (upper,) = uppers(loaded) - before
    remount = f"mount -o remount,bind,rw {app.top}; umount {app.top}"
    script = f"touch /new; {{ touch {app.top}/new; {remount}; }} 2>&1; ls {app.top}"
    said = sh(loaded, app, container, script)
    assert "Read-only file system" in said
    assert said.splitlines()[-2:] == ["bin", "dependencies"]
    assert owner(upper / "new") == (100_000, 100_001)
    assert not Path(app.top, "new").exists()
    loaded.containerd.remove_container(container)


@since_1_7
@kinds
def test_two_mappings_of_one_image_at_once(loaded, app):
    """Each container sees root's files; neither can read what the other may."""
    first, second = start(loaded, app, 100_000), start(loaded, app, 300_000)
    for container, ids in ((first, "100000"), (second, "300000")):
        assert sh(loaded, app, container, f"stat -c %u:%g {app.top}; cat /proc/self/uid_map").split() == [
            "0:0",
            "0",
            ids,
            "65536",
        ]
    plain = loaded.containerd.start_container(REFERENCE, f"{app.top}/bin/sleep", "1000")
    assert sh(loaded, app, plain, f"stat -c %u:%g {app.top}") == "0:0\n"
    for container in (first, second, plain):
        loaded.containerd.remove_container(container)


@since_1_7
@kinds
def test_removal_is_clean(loaded, app):
    """No mount, no file, no process and no open descriptor stays: not of the container, not of its user namespace."""
    loaded.containerd.run(REFERENCE, f"{app.top}/bin/true", options=mapped(100_000))
    loaded.containerd.collect_garbage()
    daemon = psutil.Process(loaded.nixsnap.pid)

    def state() -> tuple[object, ...]:
        root = loaded.nixsnap.root
        files = sorted(path for name in ("snapshots", "views", "work") for path in root.glob(f"{name}/*"))
        return mount_count(), files, daemon.num_fds(), daemon.children()

    before = state()
    containers = [start(loaded, app, 100_000 * number) for number in range(1, 6)]
    for container in containers:
        loaded.containerd.remove_container(container)
    loaded.containerd.collect_garbage()
    wait_until(lambda: state() == before, what="be as it was before")


@since_2
def test_ids_in_several_ranges(loaded, app):
    """`--uidmap` more than once."""
    options = ["--remap-labels"]
    for kind in ("uid", "gid"):
        options += [f"--{kind}map", "1:600000:65535", f"--{kind}map", "0:500000:1"]
    before = uppers(loaded)
    container = loaded.containerd.start_container(REFERENCE, f"{app.top}/bin/sleep", "1000", options=options)
    (upper,) = uppers(loaded) - before
    script = f"stat -c %u:%g {app.top}; touch /new; chown 5:6 /new"
    assert sh(loaded, app, container, script) == "0:0\n"
    assert owner(upper / "new") == (600_004, 600_005)
    assert owner(upper) == (500_000, 500_000)
    loaded.containerd.remove_container(container)


@since_2
def test_a_plain_image(loaded):
    """containerd itself maps the layers of an image without a nix layer, as those of its overlayfs snapshotter."""
    archive = build_plain_image(loaded.directory / "plain.tar", reference=PLAIN)
    loaded.containerd.ctr("image", "import", "--snapshotter", "nix", "--local", archive)
    # Of what runc mounts over it, find shows the mount points; sysfs belongs to the host's root.
    script = "id -u; stat -c %u:%g / /bin/busybox; echo x > /new; stat -c %u:%g /new"
    before = uppers(loaded)
    container = loaded.containerd.start_container(PLAIN, "sleep", "1000", options=mapped(100_000))
    (upper,) = uppers(loaded) - before
    assert loaded.containerd.exec(container, "sh", "-c", script).stdout.split() == ["0", "0:0", "0:0", "0:0"]
    assert owner(upper / "new") == (100_000, 100_001)
    loaded.containerd.remove_container(container)


@pytest.mark.parametrize("installation", ["1.7"], indirect=True)
def test_a_plain_image_on_an_old_containerd(directory, installation):
    """With `plain_idmap = nixsnap`: containerd 1.7 cannot map by itself."""
    for place in (directory, directory.parent):
        place.chmod(0o711)
    for name in ("n", "c"):
        (directory / name).mkdir()
    config = 'plain_idmap = "nixsnap"\n[image_service]\nenable = false\n'
    nixsnap = NixsnapDaemon.start(directory / "n", config=config)
    containerd = Containerd.start(installation, directory / "c", snapshotter=nixsnap.address)
    try:
        archive = build_plain_image(directory / "plain.tar", reference=PLAIN)
        containerd.ctr("image", "import", "--snapshotter", "nix", archive)
        script = "id -u; stat -c %u:%g / /bin/busybox; echo x > /new; stat -c %u:%g /new"
        said = containerd.run(PLAIN, "sh", "-c", script, options=mapped(100_000)).stdout
        assert said.split() == ["0", "0:0", "0:0", "0:0"]
        containerd.collect_garbage()
        wait_until(lambda: nixsnap.view_mounts() == [], what="take the view down")
    finally:
        containerd.stop()
        nixsnap.destroy()


@pytest.mark.parametrize("slow", [True, False])
@since_2
def test_a_file_system_that_cannot_be_idmapped(directory, overlaid, installation, app, slow):
    """With `slow_chown` a container starts and its root owns all; else `ctr` is told how to."""
    for place in (directory, directory.parent):
        place.chmod(0o711)
    for name in ("n", "c"):
        (directory / name).mkdir()
    # The kind that is to be had on any file system. Its store paths are mounts of containerd's.
    config = f'store_view = "fuse"\nslow_chown = {str(slow).lower()}\n[image_service]\nenable = false\n'
    nixsnap = NixsnapDaemon.start(directory / "n", root=overlaid / "root", config=config)
    containerd = Containerd.start(installation, directory / "c", snapshotter=nixsnap.address)
    try:
        load_image(containerd, build_image(app, directory / "app.tar", reference=REFERENCE))
        command = [
            f"{app.top}/bin/sh",
            "-c",
            f"id -u; stat -c %u:%g / /nix/store {app.top}; touch /new; stat -c %u:%g /new",
        ]
        if slow:
            said = containerd.run(REFERENCE, *command, options=mapped(100_000)).stdout
            # The store can be idmapped, and is mounted so beside the view.
            assert said.split() == ["0", "0:0", "0:0", "0:0", "0:0"]
        else:
            with pytest.raises(CommandError, match=rf"{overlaid}/root.*\(overlay\).*slow_chown = true"):
                containerd.run(REFERENCE, *command, options=mapped(100_000))
        containerd.collect_garbage()
        wait_until(lambda: nixsnap.view_mounts() == [], what="take the view down")
    finally:
        containerd.stop()
        nixsnap.destroy()
