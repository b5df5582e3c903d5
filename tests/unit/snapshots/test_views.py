"""Which mounts a chain needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixsnap.config import StoreView
from nixsnap.errors import FailedPreconditionError
from nixsnap.metadata.records import Kind, Snapshot
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.views import plan_plain, plan_view

LAYOUT = Layout(Path("/r"))
OPTIONS = ("index=off",)
MAPPED = {f"containerd.io/snapshot/{kind}mapping": "0:100000:65536" for kind in ("uid", "gid")}


def snapshot(kind, *parents):
    return Snapshot(id=9, kind=kind, parent_ids=parents)


@pytest.mark.parametrize(
    ("kind", "parents", "expected"),
    [
        (Kind.ACTIVE, (), ("bind", "/r/snapshots/9/fs", ["rw", "rbind"])),
        (Kind.VIEW, (), ("bind", "/r/snapshots/9/fs", ["ro", "rbind"])),
        (Kind.VIEW, (3,), ("bind", "/r/snapshots/3/fs", ["ro", "rbind"])),
        (
            Kind.ACTIVE,
            (3,),
            (
                "overlay",
                "overlay",
                [
                    "workdir=/r/snapshots/9/work",
                    "upperdir=/r/snapshots/9/fs",
                    "lowerdir=/r/snapshots/3/fs",
                    "index=off",
                ],
            ),
        ),
        (
            Kind.VIEW,
            (3, 2),
            ("overlay", "overlay", ["lowerdir=/r/snapshots/3/fs:/r/snapshots/2/fs", "index=off"]),
        ),
    ],
)
def test_plain_chains_are_what_containerd_returns(kind, parents, expected):
    """Types, sources and options, in their order, of mounts() in containerd's plugins/snapshots/overlay/overlay.go."""
    entry = plan_plain(LAYOUT, snapshot(kind, *parents), options=OPTIONS).describe()
    assert (entry.type, entry.source, list(entry.options)) == expected


def view(kind, *parents, nix_layers, store_view=StoreView.OVERLAY):
    return plan_view(
        LAYOUT,
        snapshot(kind, *parents),
        nix_layers=nix_layers,
        kind=store_view,
        store=Path("/nix/store"),
        options=OPTIONS,
    )


def test_overlay_view_of_interleaved_layers():
    """Each stub layer lies directly above its own nix layer, and the store lies below everything."""
    plan = view(Kind.ACTIVE, 5, 4, 3, 2, nix_layers={4, 2})
    assert list(map(str, plan.overlay.lowerdirs)) == [
        "/r/snapshots/5",
        "/r/stubs/overlay/4",
        "/r/snapshots/4",
        "/r/snapshots/3",
        "/r/stubs/overlay/2",
        "/r/snapshots/2",
        "/nix/store",
    ]
    assert str(plan.overlay.upperdir) == "/r/snapshots/9"
    assert str(plan.overlay.workdir) == "/r/work/9"
    assert plan.overlay.options == ("redirect_dir=follow", "index=off")
    assert plan.nix_layers == (4, 2)


def test_the_work_directory_is_outside_the_upper_one():
    """overlayfs refuses a workdir inside upperdir, and the upper one of a view is the whole snapshot directory."""
    plan = view(Kind.ACTIVE, 4, nix_layers={4})
    assert plan.overlay.upperdir not in plan.overlay.workdir.parents


def test_view_snapshot_has_no_upper_layer():
    """A view snapshot is mounted from lower layers alone and handed out read-only."""
    plan = view(Kind.VIEW, 4, nix_layers={4})
    assert plan.overlay.upperdir is None
    assert plan.overlay.workdir is None
    assert plan.overlay.readonly


def test_the_container_never_gets_the_overlays_root():
    """What is handed out is `fs`: beside it lie the store's other entries."""
    assert view(Kind.ACTIVE, 4, nix_layers={4}).files == Path("/r/views/9/fs")


def test_data_only_views_have_a_store_overlay_for_each_nix_layer():
    """In the place of the stub layer, which is a layer of that one, alone above the store."""
    plan = view(Kind.ACTIVE, 5, 4, 3, 2, nix_layers={4, 2}, store_view=StoreView.DATA_ONLY)
    stubs = [Path("/r/stubs/data-only/4"), Path("/r/stubs/data-only/2")]
    assert [str(path.relative_to("/r")) for path in plan.overlay.lowerdirs] == [
        "snapshots/5", "stubs/data-only/4", "snapshots/4", "snapshots/3", "stubs/data-only/2", "snapshots/2",
    ]  # fmt: skip
    assert [path for path, _ in plan.store_overlays] == stubs
    for stub, overlay in plan.store_overlays:
        assert (overlay.lowerdirs, overlay.datadirs) == ((stub,), (Path("/nix/store"),))
        assert overlay.upperdir is None
        assert overlay.readonly
    assert not [option for option in plan.overlay.options if option.startswith(("redirect_dir", "metacopy"))]


def test_bind_views_have_no_store_among_their_layers():
    """Without redirects nothing may lead to the store but the bind mounts."""
    plan = view(Kind.ACTIVE, 4, nix_layers={4}, store_view=StoreView.BIND)
    assert list(map(str, plan.overlay.lowerdirs)) == ["/r/stubs/bind/4", "/r/snapshots/4"]
    assert not [option for option in plan.overlay.options if option.startswith("redirect_dir")]


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [
        (StoreView.BIND, MAPPED, Path("/r/views/9-store")),
        (StoreView.BIND, {}, None),
        (StoreView.DATA_ONLY, MAPPED, None),
    ],
)
def test_only_store_paths_that_are_mounts_need_a_store_of_their_own(kind, labels, expected):
    """With mapped ids. The sweep knows whose it is, and it is not taken for a view."""
    active = Snapshot(id=9, kind=Kind.ACTIVE, parent_ids=(3,), labels=labels)
    plan = plan_view(LAYOUT, active, nix_layers={3}, kind=kind, store=Path("/nix/store"), options=OPTIONS)
    assert plan.mapped_store == expected
    assert Layout.owner_of(LAYOUT.mapped_store(9)) == Layout.owner_of(LAYOUT.view(9)) == 9
    assert Layout.owner_of(LAYOUT.views / "new-9-store") is None
    upon_a_plain_chain = plan_view(
        LAYOUT, active, nix_layers=(), kind=kind, store=Path("/nix/store"), options=OPTIONS
    )
    assert upon_a_plain_chain.mapped_store is None


def test_chain_longer_than_the_kernel_stacks():
    """overlayfs takes 500 lower layers (OVL_MAX_STACK); the error names the number."""
    parents = tuple(range(1000, 500, -1))
    assert len(view(Kind.ACTIVE, *parents[:498], nix_layers={1000}).overlay.lowerdirs) == 500
    with pytest.raises(FailedPreconditionError, match="needs 501 overlay layers"):
        view(Kind.ACTIVE, *parents[:499], nix_layers={1000})


def test_plain_chains_where_the_kernel_has_no_overlay():
    """containerd mounts them by fuse-overlayfs, as the snapshotter of that name has it do."""
    entry = plan_plain(
        LAYOUT, snapshot(Kind.ACTIVE, 3, 2), options=("userxattr",), kind=StoreView.FUSE
    ).describe()
    assert (entry.type, entry.source) == ("fuse3.fuse-overlayfs", "overlay")
    assert list(entry.options) == [
        "workdir=/r/snapshots/9/work", "upperdir=/r/snapshots/9/fs", "lowerdir=/r/snapshots/3/fs:/r/snapshots/2/fs",
    ]  # fmt: skip
