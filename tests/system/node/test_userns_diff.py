"""What becomes a layer of a container with mapped ids: `ctr snapshots diff`, as `nerdctl commit` asks for it.

containerd compares the container's files with those of a view of its parent, which it asks for without any mapping.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import PurePath

import pytest
from lab import Closure, build_image, build_plain_image, load_image

REFERENCE = "lab.invalid/userns-diff:1"
PLAIN = "lab.invalid/userns-diff-plain:1"
MAPPED = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels")
WRITES = "echo x > /new; echo y > /user; chown 7:8 /user; mkdir /dir; ln -s /new /dir/link"
WRITTEN = {"new", "user", "dir", "dir/link"}
RUNCS = {"dev", "proc", "run", "sys"}
"""Mount points that runc makes where an image has none."""
STORE = PurePath("nix/store")


@pytest.fixture
def loaded(node, closure):
    """The node, with a Nix image for our snapshotter, and one without Nix for containerd's overlayfs."""
    for directory in (node.directory, node.directory.parent):
        directory.chmod(0o711)
    load_image(node.containerd, build_image(closure, node.directory / "app.tar", reference=REFERENCE))
    plain = build_plain_image(node.directory / "plain.tar", reference=PLAIN)
    node.containerd.ctr("image", "import", plain)
    return node


def layer(node, programs: str, *options: str, snapshotter: str = "nix") -> dict[str, tuple[int, int]]:
    """Owner and group of all in the layer that containerd makes of a container that has written something."""
    containerd = node.containerd
    reference = REFERENCE if snapshotter == "nix" else PLAIN
    sleep = (f"{programs}/sleep", "1000")
    container = containerd.start_container(reference, *sleep, snapshotter=snapshotter, options=options)
    containerd.exec(container, f"{programs}/sh", "-c", WRITES)
    with tarfile.open(fileobj=io.BytesIO(containerd.diff(container, snapshotter=snapshotter))) as archive:
        owners = {member.name.rstrip("/"): (member.uid, member.gid) for member in archive}
    containerd.remove_container(container)
    containerd.collect_garbage()
    return owners


# `ctr` of 1.6 knows no --remap-labels.
@pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)
def test_without_mapped_ids(loaded, closure):
    """The very layer that overlayfs's container becomes: what was written, and nothing of the store."""
    ours, stock = layer(loaded, f"{closure.top}/bin"), layer(loaded, "/bin", snapshotter="overlayfs")
    assert ours == stock
    assert ours.keys() == WRITTEN | RUNCS
    assert ours["user"] == (7, 8)


@pytest.mark.parametrize(
    ("installation", "store_view"),
    [("1.7", "overlay"), ("1.7", "bind"), ("2", "overlay"), ("2", "data-only"), ("2", "bind")],
    indirect=["installation"],
)
def test_with_mapped_ids(loaded, closure: Closure, store_view):
    """What was written has its owners on disk, as with overlayfs, and of the store there is the closure alone.

    The closure is there since its files look changed: mapped in the container, not in the view of its parent. A plain
    image is there as a whole likewise with containerd 2, which maps its layers; 1.7 compares with a copy.
    """
    ours = layer(loaded, f"{closure.top}/bin", *MAPPED)
    written = dict.fromkeys(WRITTEN, (100_000, 200_000)) | {"user": (100_007, 200_008)}
    assert {name: ours[name] for name in WRITTEN} == written
    stock = layer(loaded, "/bin", *MAPPED, snapshotter="overlayfs")
    if loaded.containerd.installation.series == "1.7":
        assert {name: stock[name] for name in WRITTEN} == written
    else:
        assert "bin/busybox" in stock
    others = {PurePath(name) for name in ours.keys() - WRITTEN - RUNCS}
    assert {path for path in others if STORE not in path.parents} == {STORE, STORE.parent}
    paths = {path.relative_to(STORE).parts[0] for path in others if STORE in path.parents}
    own = {PurePath(path).name for path in closure.paths}
    assert paths == (set() if store_view == "bind" else own)
