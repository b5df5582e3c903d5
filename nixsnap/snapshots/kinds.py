"""Which kind of rootfs view works here, found out by a trial mount of each in turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import attrs

from nixsnap.config import StoreView
from nixsnap.errors import FailedPreconditionError
from nixsnap.mounts import features
from nixsnap.mounts.trial import Feature

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Place:
    """Where views are going to be mounted.

    Attributes:
        root: The root directory, whose file system holds the layers.
        store: Where the store lies on this host.
        userxattr: Whether overlays here keep their marks in `user.*` attributes.
    """

    root: Path
    store: Path
    userxattr: bool


def _overlay(place: Place) -> Feature:
    if place.userxattr:  # it would fail just so, but in words of the kernel's
        return Feature(f"no trusted.* attributes in {place.root}: overlayfs follows no redirects there")
    return features.overlay_redirect(place.root, place.store)


# The best first: one mount for any closure, then one and a file for each file of it, then a mount for each store path,
# then that and a file system in user space.
_TRIALS: Final[dict[StoreView, Callable[[Place], Feature]]] = {
    StoreView.OVERLAY: _overlay,
    StoreView.DATA_ONLY: lambda place: features.overlay_data_only(
        place.root, place.store, userxattr=place.userxattr
    ),
    StoreView.BIND: lambda place: features.bind_in_overlay(place.root, userxattr=place.userxattr),
    StoreView.FUSE: lambda place: features.fuse_overlay(place.root),
}

_HINTS: Final = {
    StoreView.OVERLAY: "run as root, with the root on a file system that has trusted.* attributes",
    StoreView.DATA_ONLY: "it takes Linux 6.16, and a file system with user.* attributes",
    StoreView.BIND: "in a user namespace it takes Linux 5.11",
    StoreView.FUSE: "it takes the programs fuse-overlayfs and mount.fuse3, and /dev/fuse open to the user",
}


def try_all(place: Place) -> dict[StoreView, Feature]:
    """Whether each kind of rootfs view works, the best first."""
    return {kind: trial(place) for kind, trial in _TRIALS.items()}


def choose(place: Place, wanted: StoreView) -> StoreView:
    """The kind of rootfs view: what is configured, else the best one that a trial in the root directory can mount.

    Raises:
        FailedPreconditionError: The one that is configured does not work here, or none does.
    """
    if wanted is not StoreView.AUTO:
        feature = _TRIALS[wanted](place)
        if not feature:
            raise FailedPreconditionError(
                f"store_view = {wanted.value} does not work in {place.root}: {feature.missing}",
                hint=f"set store_view = auto; {_HINTS[wanted]}",
            )
        log.info("store view kind=%s", wanted.value)
        return wanted
    missing: dict[str, str] = {}
    for kind, trial in _TRIALS.items():
        feature = trial(place)
        if feature.missing is None:
            if missing:
                log.info("store view kind=%s reason=%r", kind.value, _reasons(missing))
            else:
                log.info("store view kind=%s", kind.value)
            return kind
        missing[kind.value] = feature.missing
    raise FailedPreconditionError(
        f"no kind of rootfs view works in {place.root}: {_reasons(missing)}", hint=_HINTS[StoreView.FUSE]
    )


def _reasons(missing: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in missing.items())
