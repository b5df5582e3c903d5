"""The nix layer: an ordinary layer that holds a mount point for each store path, and no content.

Every byte of it follows from the store paths and the names below the roots: entries are sorted, owned by
root, and dated 1970, and the gzip header has no name and no time.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.roots import Node
from nixsnap.image.storefiles import is_directory
from nixsnap.nix.storepath import StorePath, shorten

_END_OF_ARCHIVE: Final = bytes(2 * tarfile.BLOCKSIZE)
# The best ratio that zlib reaches at its default effort: the input is mostly zeros, and 9 gains under 1 %.
_GZIP_LEVEL: Final = 6


@attrs.frozen(kw_only=True)
class Entry:
    """One entry of a layer: a directory, an empty file, or (with `target`) a symbolic link."""

    kind: bytes
    mode: int
    target: str = ""


@attrs.frozen(kw_only=True)
class Layer:
    """A layer as written.

    Args:
        diff_id: Digest of the uncompressed tar.
        digest: Digest of the blob.
        size: Of the blob, in bytes.
    """

    diff_id: str
    digest: str
    size: int


_DIRECTORY: Final = Entry(kind=tarfile.DIRTYPE, mode=0o755)
_STORE_DIRECTORY: Final = Entry(kind=tarfile.DIRTYPE, mode=0o555)
_STORE_FILE: Final = Entry(kind=tarfile.REGTYPE, mode=0o555)


def plan_layer(paths: Iterable[StorePath], roots: Mapping[str, Node]) -> dict[str, Entry]:
    """Decide what the layer holds.

    Args:
        paths: The closure.
        roots: What `merge_roots` returns.

    Returns:
        Entries by their path below `/`.

    Raises:
        NotFoundError: The store lacks one of the paths.
        InvalidArgumentError: A root puts something where a store path, or a directory above one, must be.
    """
    entries = {path: _root_entry(node) for path, node in roots.items()}
    for path in paths:
        name = str(path).lstrip("/")
        for parent in _parents(name):
            if parent not in entries:
                entries[parent] = _DIRECTORY
            elif entries[parent].target:
                raise _in_the_way(roots[parent], parent, path)
        if name in roots:
            raise _in_the_way(roots[name], name, path)
        entries[name] = _STORE_DIRECTORY if is_directory(path) else _STORE_FILE
    return entries


def write_layer(entries: Mapping[str, Entry], out: BinaryIO) -> Layer:
    """Write the layer, compressed.

    Args:
        entries: As `plan_layer` returns them.
        out: Written from its position on.
    """
    blob = _HashingWriter(out)
    diff = hashlib.sha256()
    # Not `gzip.open`: the time and the name in the header must not depend on the day and the file.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=blob, mtime=0) as packed:
        for chunk in _tar_chunks(entries):
            diff.update(chunk)
            packed.write(chunk)
    return Layer(
        diff_id=f"sha256:{diff.hexdigest()}", digest=f"sha256:{blob.hash.hexdigest()}", size=blob.size
    )


class _HashingWriter:
    """A sink that knows the digest and the length of what went through it."""

    def __init__(self, out: BinaryIO) -> None:
        self.hash = hashlib.sha256()
        self.size = 0
        self._out = out

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self._out.write(data)

    def flush(self) -> None:
        """Leave it to the owner of the sink."""


def _tar_chunks(entries: Mapping[str, Entry]) -> Iterator[bytes]:
    # A directory sorts before what it holds, because its name is a prefix of theirs.
    for name in sorted(entries):
        entry = entries[name]
        info = tarfile.TarInfo(_portable(name))
        info.type, info.mode, info.linkname = entry.kind, entry.mode, _portable(entry.target)
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    yield _END_OF_ARCHIVE


def _portable(name: str) -> str:
    """Give a file name the form that tarfile writes as the bytes it has on disk, whatever the locale."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _root_entry(node: Node) -> Entry:
    if node.target is None:
        return _DIRECTORY
    return Entry(kind=tarfile.SYMTYPE, mode=0o777, target=node.target)


def _parents(name: str) -> Iterator[str]:
    """Yield the directories above `name`, outermost first."""
    position = name.find("/")
    while position >= 0:
        yield name[:position]
        position = name.find("/", position + 1)


def _in_the_way(node: Node, where: str, path: StorePath) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"copy-to-root: {shorten(node.root)} has {shorten('/' + where)}, where {path} must be"
    )
