"""Mounts as values: what they look like to containerd. The order of options is that of its overlayfs snapshotter."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixsnap.mounts.operations import BindMount, MountEntry, OverlayMount

SNAPSHOTS = Path("/root/snapshots")


def test_a_writable_bind_is_rw_rbind():
    """plugins/snapshots/overlay/overlay.go: one layer, active."""
    mount = BindMount(source=SNAPSHOTS / "1/fs", readonly=False)
    assert mount.describe() == MountEntry(type="bind", source="/root/snapshots/1/fs", options=("rw", "rbind"))


def test_a_view_of_one_layer_is_ro_rbind():
    """plugins/snapshots/overlay/overlay.go: one parent, view."""
    mount = BindMount(source=SNAPSHOTS / "1/fs", readonly=True)
    assert mount.describe().options == ("ro", "rbind")


def test_a_bind_that_is_not_recursive_says_so():
    """mount(8) calls it bind."""
    mount = BindMount(source=SNAPSHOTS, recursive=False, readonly=False)
    assert mount.describe().options == ("rw", "bind")


def test_a_writable_overlay():
    """plugins/snapshots/overlay/overlay.go: workdir, upperdir, lowerdir, then the rest."""
    mount = OverlayMount(
        lowerdirs=[SNAPSHOTS / "2/fs", SNAPSHOTS / "1/fs"],
        upperdir=SNAPSHOTS / "3/fs",
        workdir=SNAPSHOTS / "3/work",
        options=["index=off", "userxattr"],
    )
    assert mount.describe() == MountEntry(
        type="overlay",
        source="overlay",
        options=(
            "workdir=/root/snapshots/3/work",
            "upperdir=/root/snapshots/3/fs",
            "lowerdir=/root/snapshots/2/fs:/root/snapshots/1/fs",
            "index=off",
            "userxattr",
        ),
    )


def test_an_overlay_of_lowers_alone():
    """plugins/snapshots/overlay/overlay.go: a view of several layers."""
    mount = OverlayMount(lowerdirs=[Path("/b"), Path("/a")])
    assert mount.describe().options == ("lowerdir=/b:/a",)


def test_data_only_layers_follow_two_colons():
    """Documentation/filesystems/overlayfs.rst, "Data-only lower layers"."""
    mount = OverlayMount(lowerdirs=[Path("/b"), Path("/a")], datadirs=[Path("/d"), Path("/e")])
    assert mount.describe().options == ("lowerdir=/b:/a::/d::/e",)


def test_a_readonly_overlay_with_an_upperdir_says_ro():
    """Else it would be writable."""
    mount = OverlayMount(lowerdirs=[Path("/a")], upperdir=Path("/u"), workdir=Path("/w"), readonly=True)
    assert mount.describe().options[-1] == "ro"


def test_special_characters_are_escaped():
    """overlayfs takes the text apart at colons and commas (fs/overlayfs/params.c)."""
    mount = OverlayMount(lowerdirs=[Path("/a:b"), Path("/c,d"), Path(r"/e\f")])
    assert mount.describe().options == (r"lowerdir=/a\:b:/c\,d:/e\\f",)


def test_equal_mounts_are_equal():
    """They are values: lists and tuples make no difference."""
    assert OverlayMount(lowerdirs=[Path("/a")]) == OverlayMount(lowerdirs=(Path("/a"),))
    assert hash(OverlayMount(lowerdirs=[Path("/a")])) == hash(OverlayMount(lowerdirs=(Path("/a"),)))


@pytest.mark.parametrize("layers", [{"upperdir": Path("/u")}, {"workdir": Path("/w")}])
def test_upperdir_and_workdir_go_together(layers):
    """The kernel takes neither alone."""
    with pytest.raises(ValueError, match="upperdir"):
        OverlayMount(lowerdirs=[Path("/a")], **layers)


def test_an_overlay_needs_a_lower_layer():
    """The kernel wants one."""
    with pytest.raises(ValueError, match="lowerdirs"):
        OverlayMount(lowerdirs=[])
