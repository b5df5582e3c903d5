"""How the parts of the snapshotter are put together on this machine, with the kind of view that its kernel can show."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

import attrs

from nixsnap.config import Config, PlainIdmap, StoreView
from nixsnap.errors import FailedPreconditionError
from nixsnap.metadata.store import Store
from nixsnap.mounts import features
from nixsnap.mounts.trial import Feature
from nixsnap.nix.realise import Realiser
from nixsnap.nix.roots import RootInspector
from nixsnap.snapshots import kinds
from nixsnap.snapshots.closures import Closures
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.mapped import MappedMounter
from nixsnap.snapshots.mounter import ViewMounter
from nixsnap.snapshots.presenter import Presenter
from nixsnap.snapshots.snapshotter import Snapshotter
from nixsnap.snapshots.stubs import StubMaker
from nixsnap.snapshots.sweep import Sweeper
from nixsnap.snapshots.upkeep import Upkeep
from nixsnap.storedoor.client import shown_store

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Views:
    """What rootfs views are made of here.

    Attributes:
        kind: How they show store paths.
        userxattr: Whether overlays keep their marks in `user.*` attributes.
        store: Where they take the store from; Nix knows it as the configuration says.
    """

    kind: StoreView
    userxattr: bool
    store: Path


@contextmanager
def prepare_views(config: Config, layout: Layout) -> Iterator[Views]:
    """Find out what views can be made of here, and keep the store shown where they take it from.

    Raises:
        FailedPreconditionError: Nothing can be mounted here, or not in the way that the configuration asks for.
    """
    _require_mounts(config.root)
    userxattr = bool(features.needs_userxattr(config.root))
    place = kinds.Place(root=config.root, store=config.host_store, userxattr=userxattr)
    kind = kinds.choose(place, config.store_view)
    with shown_store(
        config.host_store,
        door=config.store_door,
        target=layout.shown_store,
        # A data-only view shows the owner of its stubs, which is us, whosever the store is.
        shows_owners=kind is not StoreView.DATA_ONLY,
    ) as store:
        yield Views(kind=kind, userxattr=userxattr, store=store)


def assemble(
    config: Config,
    layout: Layout,
    store: Store,
    views: Views,
    *,
    realiser: Realiser,
    background: Executor,
) -> tuple[Snapshotter, Sweeper, Upkeep]:
    """Make the snapshotter, and what looks after its files and its roots.

    Args:
        config: The configuration.
        layout: Where files lie; its directories exist.
        store: The metadata.
        views: What views are made of here.
        realiser: Makes closures present.
        background: Runs what is begun ahead of its need.
    """
    stubs = StubMaker(
        layout=layout,
        kind=views.kind,
        store=views.store,
        store_dir=config.store_dir,
        userxattr=views.userxattr,
        keep_ids=features.has_all_ids(),
        executor=background,
    )
    idmapped_layers = _idmapped_layers(config.root)
    mounter = ViewMounter(
        layout=layout,
        stubs=stubs,
        mapped=MappedMounter(
            layout=layout,
            store=views.store,
            store_dir=config.store_dir,
            idmapped_layers=idmapped_layers,
            slow_chown=config.slow_chown,
        ),
        store=views.store,
        store_dir=config.store_dir,
        readonly_store=config.readonly_store,
    )
    sweeper = Sweeper(layout=layout, store=store, mounter=mounter)
    upkeep = Upkeep(
        layout=layout, store=store, realiser=realiser, inspector=make_inspector(config), mounter=mounter
    )
    closures = Closures(
        layout=layout,
        realiser=realiser,
        stubs=stubs,
        store_dir=config.store_dir,
        are_inferred=config.infer_nix_layers,
    )
    presenter = Presenter(
        layout=layout,
        store=store,
        mounter=mounter,
        upkeep=upkeep,
        kind=views.kind,
        overlay_options=_overlay_options(userxattr=views.userxattr),
        plain_options=_plain_options(),
        # Without idmapped layers slow_chown has its way, and that is ours.
        map_plain=config.plain_idmap is PlainIdmap.NIXSNAP or not idmapped_layers,
    )
    snapshotter = Snapshotter(
        layout=layout, store=store, closures=closures, presenter=presenter, mounter=mounter, sweeper=sweeper
    )
    return snapshotter, sweeper, upkeep


def make_inspector(config: Config) -> RootInspector:
    """What tells which roots hold what they should, in the store that the configuration names."""
    external = config.external_builder is not None
    return RootInspector.of(config.host_store, store_root=config.store_root, external=external)


def _overlay_options(*, userxattr: bool) -> tuple[str, ...]:
    """What containerd's overlayfs snapshotter mounts every overlay with here, in its order."""
    marks = ("userxattr",) if userxattr else ()
    # The index would forbid a layer to be below two overlays' upper layers at once.
    return (*marks, *features.index_off())


def _plain_options() -> tuple[str, ...]:
    """What keeps redirects out of plain chains on kernels that make them by default.

    A directory that a container renames there would get a redirect, absolute from the root of that overlay. Upon a nix
    layer the same layer lies below another root, beside whose top directory is the whole store: the redirect would lead
    elsewhere, and to whatever a hostile container chose.
    """
    default_on = features.overlay_default("redirect_dir")
    return ("redirect_dir=nofollow",) if default_on else ()


def _require_mounts(root: Path) -> None:
    if not (mounts := features.mounts(root)):
        raise FailedPreconditionError(
            f"user {os.geteuid()} may mount nothing here: {mounts.missing}",
            hint="run it as root, or in the namespaces of rootless containerd (packaging/rootless, docs/rootless.md)",
        )


def _idmapped_layers(root: Path) -> Feature:
    """Whether containers with user namespaces of their own can run here."""
    feature = features.idmapped_layers(root)
    if not feature:
        log.info("no containers with mapped ids reason=%r", feature.missing)
    return feature
