"""Which mounts a chain needs: pure functions from records to values; nothing here touches the kernel.

A chain without a nix layer is described exactly as containerd's overlayfs snapshotter describes it
(`plugins/snapshots/overlay/overlay.go`), and containerd mounts it.

A chain with one gets a *rootfs view*, which we mount ourselves. overlayfs follows an absolute `redirect` on a
directory of one lower layer into the layers below it (Documentation/filesystems/overlayfs.rst, "redirect_dir"). So a
*stub layer*, which holds only `fs/nix/store/<name>` directories with `trusted.overlay.redirect=/<name>`, above the
store itself as the lowest layer, shows exactly those store paths at `fs/nix/store`:

    upperdir  snapshots/<id>
    lowerdir  for each ancestor, nearest first: its stub layer, if it is a nix layer, then snapshots/<ancestor id>;
              at the end the store

The store's other entries appear at that overlay's own root, beside `fs`. So a container is never given the root: it is
given a bind mount of `fs`, out of which nothing leads up.

The stub layer lies directly above its own nix layer. Layers above both may change files inside a store path, which
is seen because theirs are looked up first; layers below cannot, because the redirect leads past them.

That is the kind `overlay`. In a user namespace overlayfs follows no redirect of a directory, but since Linux 6.16 that
of a file without data ("metacopy") into a data-only layer, if the file lies in the lowest layer of all others
(fs/overlayfs/namei.c, ovl_lookup: with a layer in between, the redirect is looked up there first, which is refused).
So the kind `data-only` puts a *store overlay* where the other one has the stub layer: an overlay of its own, read-only,
never attached anywhere, whose lowest layer is a stub layer with a file for each file of the closure, above the store as
the data-only layer. An overlay can be a layer of one other; so what holds for the order of layers holds here as well.

The kinds `bind` and `fuse` show store paths by bind mounts, on a kernel overlay or on one of fuse-overlayfs. It is
containerd that mounts them, each where it belongs in the container (see `mounter`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import attrs

from nixsnap.config import StoreView
from nixsnap.errors import FailedPreconditionError
from nixsnap.metadata.records import Kind, Snapshot
from nixsnap.mounts.operations import BindMount, OverlayMount
from nixsnap.mounts.values import IdMapping
from nixsnap.snapshots.idmapping import mount_options, parse_mapping
from nixsnap.snapshots.layout import Layout

MountOperation: TypeAlias = BindMount | OverlayMount
Mounts: TypeAlias = tuple[MountOperation, ...]

TRUSTED_XATTRS: Final = "trusted.overlay."
USER_XATTRS: Final = "user.overlay."
REDIRECT_XATTR: Final = f"{TRUSTED_XATTRS}redirect"

FUSE_TYPE: Final = "fuse3.fuse-overlayfs"

BINDING: Final = frozenset({StoreView.BIND, StoreView.FUSE})
"""The kinds that show each store path by a mount of its own."""

# fs/overlayfs/super.c, OVL_MAX_STACK.
_MAX_LOWERDIRS: Final = 500


@attrs.frozen(kw_only=True)
class ViewPlan:
    """A rootfs view, before it is mounted.

    Attributes:
        overlay: The overlay, to be mounted at `target`.
        target: The mount point.
        files: The directory below `target` that is the container's root.
        workdir: The overlay's work directory, to be made first; None for a read-only view.
        nix_layers: Ids of the chain's nix layers, nearest first, whose stub layers must exist.
        kind: How store paths are shown.
        store_overlays: Layers of `overlay` that are overlays themselves, by the path that stands for them in it.
        mapping: Whose ids the owners of all but the upper layer become; None to show them as they are.
        mapped_store: Where the store is to be mounted with these ids, for containerd to mount store paths from; None
            where they are not mapped, or store paths are no mounts of their own.
    """

    overlay: OverlayMount
    target: Path
    files: Path
    workdir: Path | None
    nix_layers: tuple[int, ...]
    kind: StoreView
    store_overlays: tuple[tuple[Path, OverlayMount], ...] = ()
    mapping: IdMapping | None = None
    mapped_store: Path | None = None


def plan_plain(
    layout: Layout,
    snapshot: Snapshot,
    *,
    options: Sequence[str],
    idmap: bool = True,
    kind: StoreView = StoreView.OVERLAY,
) -> MountOperation:
    """The mount of a chain without a nix layer.

    Args:
        layout: Where the layers lie.
        snapshot: An active snapshot or a view.
        options: What every overlay of the kernel's is mounted with on this machine, as `index=off`.
        idmap: Whether containerd is to map ids, where labels ask for it.
        kind: With `FUSE` containerd mounts plain chains by fuse-overlayfs too, as its snapshotter for that does.
    """
    readonly = snapshot.kind is Kind.VIEW
    client_options = mount_options(snapshot.labels) if idmap else ()
    if not snapshot.parent_ids:
        source = layout.upper(snapshot.id)
        return BindMount(source=source, recursive=True, readonly=readonly, client_options=client_options)
    if readonly and len(snapshot.parent_ids) == 1:
        # overlayfs wants an upper layer or at least two lower ones.
        source = layout.upper(snapshot.parent_ids[0])
        return BindMount(source=source, recursive=True, readonly=True, client_options=client_options)
    return OverlayMount(
        lowerdirs=tuple(layout.upper(parent_id) for parent_id in snapshot.parent_ids),
        upperdir=None if readonly else layout.upper(snapshot.id),
        workdir=None if readonly else layout.plain_work(snapshot.id),
        options=() if kind is StoreView.FUSE else tuple(options),
        type=FUSE_TYPE if kind is StoreView.FUSE else "overlay",
        readonly=False,  # without an upper layer it cannot be written to anyway, and containerd passes no "ro"
        client_options=client_options,
    )


def plan_view(
    layout: Layout,
    snapshot: Snapshot,
    *,
    nix_layers: Collection[int],
    kind: StoreView,
    store: Path,
    options: Sequence[str],
) -> ViewPlan:
    """The rootfs view of a chain with a nix layer.

    Args:
        layout: Where the layers lie.
        snapshot: An active snapshot or a view.
        nix_layers: Ids of the nix layers among its ancestors; none where only its owners are to be mapped.
        kind: How store paths are to be shown; not `AUTO`.
        store: Where the store lies on this host.
        options: What every overlay on this machine is mounted with.

    Raises:
        FailedPreconditionError: The chain is longer than overlayfs can stack.
    """
    lowerdirs: list[Path] = []
    for parent_id in snapshot.parent_ids:
        if parent_id in nix_layers:
            lowerdirs.append(layout.stub(kind, parent_id))
        lowerdirs.append(layout.snapshot(parent_id))
    readonly = snapshot.kind is Kind.VIEW
    if readonly and len(lowerdirs) == 1:  # overlayfs wants two; its own layer is empty
        lowerdirs.append(layout.snapshot(snapshot.id))
    if kind is StoreView.OVERLAY and nix_layers:
        lowerdirs.append(store)
        options = ("redirect_dir=follow", *options)
    if len(lowerdirs) > _MAX_LOWERDIRS:
        raise FailedPreconditionError(
            f"snapshot {snapshot.id} needs {len(lowerdirs)} overlay layers, but the kernel stacks {_MAX_LOWERDIRS}",
            hint="squash layers of the image",
        )
    workdir = None if readonly else layout.work(snapshot.id)
    shown = tuple(parent_id for parent_id in snapshot.parent_ids if parent_id in nix_layers)
    stubs = [layout.stub(kind, parent_id) for parent_id in shown] if kind is StoreView.DATA_ONLY else []
    mapping = parse_mapping(snapshot.labels)
    mapped_store = layout.mapped_store(snapshot.id) if mapping and shown and kind in BINDING else None
    return ViewPlan(
        overlay=OverlayMount(
            lowerdirs=tuple(lowerdirs),
            upperdir=None if readonly else layout.snapshot(snapshot.id),
            workdir=workdir,
            options=tuple(options),
            readonly=readonly,
        ),
        target=layout.view(snapshot.id),
        files=layout.view(snapshot.id) / "fs",
        workdir=workdir,
        nix_layers=shown,
        kind=kind,
        store_overlays=tuple((stub, _store_overlay(stub, store=store, options=options)) for stub in stubs),
        mapping=mapping,
        mapped_store=mapped_store,
    )


def _store_overlay(stub: Path, *, store: Path, options: Sequence[str]) -> OverlayMount:
    return OverlayMount(lowerdirs=(stub,), datadirs=(store,), options=tuple(options), readonly=True)
