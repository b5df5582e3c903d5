"""The labels on Prepare that make a snapshot a nix layer.

containerd hands a layer's annotations to the snapshotter as labels when their name begins with
`containerd.io/snapshot/` (`core/snapshots/snapshotter.go`, FilterInheritedLabels). Whoever made the image wrote them,
so each value is checked before anything is done with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nixsnap.errors import InvalidArgumentError
from nixsnap.nix.realise import ClosureRequest
from nixsnap.nix.storepath import StorePath, shorten

NIX_CLOSURE: Final = "containerd.io/snapshot/nix-closure"
NIX_LAYER: Final = "containerd.io/snapshot/nix-layer"
NIX_STORE_PATH_PREFIX: Final = "containerd.io/snapshot/nix-store-path."


def parse_closure_request(labels: Mapping[str, str], *, store_dir: str) -> ClosureRequest | None:
    """What closure the labels of a Prepare ask for; None where the snapshot is no nix layer.

    Args:
        labels: Labels by name.
        store_dir: The store directory that every store path must lie in.

    Raises:
        InvalidArgumentError: A value is not a store path, or a nix layer is announced that names none.
    """
    closure_info = labels.get(NIX_CLOSURE)
    store_paths = [
        _parse(name, value, store_dir=store_dir)
        for name, value in labels.items()
        if name.startswith(NIX_STORE_PATH_PREFIX)
    ]
    if closure_info is None and not store_paths:
        if labels.get(NIX_LAYER, "false") == "false":
            return None
        raise InvalidArgumentError(
            f"label {NIX_LAYER} announces a nix layer, but neither {NIX_CLOSURE} nor {NIX_STORE_PATH_PREFIX}0 is there",
            hint="build the image again; a layer without store paths needs no such annotation",
        )
    return ClosureRequest(
        closure_info=None if closure_info is None else _parse(NIX_CLOSURE, closure_info, store_dir=store_dir),
        store_paths=tuple(sorted(set(store_paths))),
    )


def _parse(name: str, value: str, *, store_dir: str) -> StorePath:
    try:
        return StorePath.parse(value, store_dir=store_dir)
    except InvalidArgumentError as exc:
        raise InvalidArgumentError(f"label {shorten(name)}: {exc.message}") from exc
