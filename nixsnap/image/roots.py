"""`copyToRoot`: store paths whose content an image shows at `/`, as symbolic links into the store.

Directories become directories, merged where several roots have them; all else becomes a link to the file in
the store, and a link in the store is not followed but linked to. A root that is a single file becomes a
link of its name, less the digest, as `COPY file /` would have it. A root that is a link stands for what it
leads to, which must be in the store.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import document
from nixsnap.image.storefiles import real_path, store_path_of
from nixsnap.nix.storepath import STORE_DIR, StorePath, shorten

_WHITEOUT: Final = ".wh."


class Node(NamedTuple):
    """What a root puts somewhere: a link to `target`, or a directory if there is none."""

    root: str
    target: str | None


def read_roots(path: str, *, store_dir: str = STORE_DIR) -> list[str]:
    """Read what `--copy-to-root` names: a JSON array of store paths, or of paths within one.

    Raises:
        NotFoundError: There is no such file.
        InvalidArgumentError: It is not such an array.
    """
    where = f"copy-to-root {shorten(path)}"
    value = document.parse_file(path, where)
    roots = () if value is None else document.texts(value, where)
    for root in roots:
        store_path_of(root, store_dir)
    return [root.rstrip("/") for root in roots]


def root_paths(roots: Iterable[str], *, store_dir: str = STORE_DIR) -> dict[str, StorePath]:
    """The store path that each root's links will lead into.

    Args:
        roots: As `read_roots` returns them.
        store_dir: The store directory.

    Raises:
        NotFoundError: A root does not exist.
        InvalidArgumentError: A root leads out of the store.
    """
    return {root: _resolve(root, store_dir)[1] for root in roots}


def merge_roots(roots: Iterable[str], *, store_dir: str = STORE_DIR) -> dict[str, Node]:
    """Lay the roots over one another.

    Args:
        roots: As `read_roots` returns them.
        store_dir: The store directory.

    Returns:
        Nodes by their path below `/`; a directory stands before what it holds.

    Raises:
        NotFoundError: A root does not exist. InvalidArgumentError: A root leads out of the store, two roots
            have different things at one path, or a name would be a whiteout in a layer.
    """
    merged: dict[str, Node] = {}
    for root in roots:
        for path, node in _walk(root, store_dir):
            present = merged.setdefault(path, node)
            if present is not node and not _same(present, node):
                both = f"{shorten(present.root)} and {shorten(root)}"
                raise InvalidArgumentError(
                    f"copy-to-root: {both} have different things at {shorten('/' + path)}"
                )
    return merged


def _walk(root: str, store_dir: str) -> Iterator[tuple[str, Node]]:
    """Yield the nodes of one root."""
    real, _ = _resolve(root, store_dir)
    if not posixpath.isdir(real):
        yield _name_of(root, store_dir), Node(root, real)
        return
    pending = [("", real)]
    while pending:
        prefix, directory = pending.pop()
        for name, is_directory in _list(directory):
            path, full = f"{prefix}{name}", f"{directory}/{name}"
            yield path, Node(root, None if is_directory else full)
            if is_directory:
                pending.append((f"{path}/", full))


def _list(directory: str) -> Iterator[tuple[str, bool]]:
    """Yield what a directory holds, and whether it is a directory (a link to one is none)."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(_WHITEOUT):
                raise InvalidArgumentError(
                    f"copy-to-root: {shorten(entry.path)} would not show but hide, as every {_WHITEOUT} file in a layer"
                )
            yield entry.name, entry.is_dir(follow_symlinks=False)


def _resolve(root: str, store_dir: str) -> tuple[str, StorePath]:
    """Follow a root that is a link; return where it leads, and the store path that this is in."""
    real = real_path(root, store_dir)
    try:
        return real, store_path_of(real, store_dir)
    except InvalidArgumentError as exc:
        reason = f"{shorten(root)} leads out of the store: {exc.message}"
        raise InvalidArgumentError(f"copy-to-root: {reason}") from exc


def _same(present: Node, other: Node) -> bool:
    """Whether two nodes of one path agree: both directories, or links that lead to one file."""
    if present.target is None or other.target is None:
        return present.target is other.target
    return posixpath.realpath(present.target) == posixpath.realpath(other.target)


def _name_of(root: str, store_dir: str) -> str:
    """What a single file is called at `/`."""
    path = store_path_of(root, store_dir)
    return posixpath.basename(root) if root != str(path) else path.name[len(path.digest) + 1 :]
