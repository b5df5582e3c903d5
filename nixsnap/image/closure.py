"""The closure of a nix layer: which store paths an image needs, and the annotations that say so.

containerd hands a layer's annotations that begin with `containerd.io/snapshot/` to the snapshotter as
labels. There are two forms (docs/image-format.md): one names a `closureInfo` output, which lists the paths;
the legacy one names each path. containerd takes labels of at most 4096 bytes, key and value together; a
store path has at most 255, so every label fits.
"""

from __future__ import annotations

import enum
import posixpath
import stat
from pathlib import Path
from typing import Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.storefiles import real_path
from nixsnap.nix.storepath import STORE_DIR, StorePath, parse_closure, shorten

CLOSURE_ANNOTATION: Final = "containerd.io/snapshot/nix-closure"
LAYER_ANNOTATION: Final = "containerd.io/snapshot/nix-layer"
PATH_ANNOTATION_PREFIX: Final = "containerd.io/snapshot/nix-store-path."

_LIST_NAME: Final = "store-paths"


class AnnotationForm(enum.StrEnum):
    """Which annotations a nix layer gets."""

    CLOSURE = "closure"
    LEGACY = "legacy"
    BOTH = "both"


@attrs.frozen(kw_only=True)
class Closure:
    """The store paths of one nix layer.

    Args:
        paths: In the order of the list they came from, each once.
        info: The `closureInfo` output that lists them, if it was one in the store.
    """

    paths: tuple[StorePath, ...] = ()
    info: StorePath | None = None

    def without(self, path: str) -> Closure:
        """The same closure less one path, which a `closureInfo` output would still list."""
        return Closure(paths=tuple(each for each in self.paths if str(each) != path))

    def annotations(self, form: AnnotationForm) -> dict[str, str]:
        """The annotations of the layer's descriptor.

        Raises:
            InvalidArgumentError: The form needs a `closureInfo` output, and the closure is a mere list.
        """
        result: dict[str, str] = {}
        if form is not AnnotationForm.LEGACY:
            if self.info is None:
                raise InvalidArgumentError(
                    f"annotations of the form {form} need a closure that a closureInfo output in the store lists"
                )
            result[CLOSURE_ANNOTATION] = str(self.info)
        if form is not AnnotationForm.CLOSURE:
            result[LAYER_ANNOTATION] = "true"
            result |= {f"{PATH_ANNOTATION_PREFIX}{i}": str(path) for i, path in enumerate(self.paths)}
        return result


def read_closure(source: str, *, store_dir: str = STORE_DIR) -> Closure:
    """Read a closure from what `--closure` names.

    Args:
        source: A `closureInfo` output, the `store-paths` file in one, or any file with a store path a line; a pipe
            too, as a shell makes one of `<(nix-store --query --requisites …)`.
        store_dir: The store directory.

    Raises:
        NotFoundError: There is no such file.
        InvalidArgumentError: A line of it is not a store path.
    """
    listing = source if _is_stream(source) else real_path(source, store_dir)
    if posixpath.isdir(listing):
        listing = real_path(f"{listing}/{_LIST_NAME}", store_dir)
    text = Path(listing).read_bytes().decode("utf-8", "surrogateescape")
    try:
        paths = parse_closure(text, store_dir=store_dir)
    except InvalidArgumentError as exc:
        raise InvalidArgumentError(f"closure {shorten(source)}, {exc.message}") from exc
    return Closure(paths=tuple(paths), info=_info_of(listing, store_dir))


def _is_stream(path: str) -> bool:
    """Whether a path leads to a pipe or a terminal, which has no other path than that."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _info_of(listing: str, store_dir: str) -> StorePath | None:
    """The store path that a list belongs to, if it lies where `closureInfo` puts it."""
    directory, name = posixpath.split(listing)
    try:
        return StorePath.parse(directory, store_dir=store_dir) if name == _LIST_NAME else None
    except InvalidArgumentError:
        return None  # a list of the user's own that happens to have the name
