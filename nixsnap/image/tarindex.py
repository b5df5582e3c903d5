"""What a tar archive holds and where, for archives that nobody vouches for.

Nothing is extracted: the result says at which offset each file's bytes lie. The standard library's
`tarfile` is not used for reading, because it takes the archive's word: an extended header is read whole
into memory whatever its size, a damaged header in the middle ends the archive without a word, a file may
reach past the end, and whether a negative size makes it loop for ever (CVE-2025-8194) depends on the Python
at hand.

The formats are POSIX.1-2001 pax and ustar, and GNU's long names and large numbers; so every writer of image
archives is covered. Files with holes (GNU sparse), devices and pipes have no business in one and are
refused.
"""

from __future__ import annotations

import os
import posixpath
import struct
from collections.abc import Iterator
from typing import Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.nix.storepath import shorten

BLOCK: Final = 512
MAX_ENTRIES: Final = 100_000
MAX_EXTENSION: Final = 1 << 20
MAX_LINKS: Final = 16

# name, mode, uid, gid, size, mtime, checksum, type, link name, magic, owner's names, device, prefix
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_CHECKSUM: Final = slice(148, 156)
_REGULAR: Final = frozenset({b"0", b"\0", b"7"})
_EXTENSIONS: Final = frozenset({b"x", b"g", b"L", b"K"})
_REFUSED: Final = {b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}


@attrs.frozen
class Extent:
    """Where a file's bytes lie in the archive: `size` bytes at `offset`."""

    offset: int
    size: int


@attrs.define
class _Entry:
    name: str
    kind: bytes
    size: int
    target: str


class TarIndex:
    """The regular files of a tar archive by name; symbolic and hard links lead to the file they name.

    Args:
        fd: The archive, seekable; not closed and its position not moved.
        what: The archive's name, for messages.

    Raises:
        InvalidArgumentError: It is no tar archive, it is damaged or cut off, a name or a link climbs out of
            it, one name is there twice, or it has more than `MAX_ENTRIES` entries.
    """

    def __init__(self, fd: int, what: str) -> None:
        self._files: dict[str, Extent] = {}
        self._links: dict[str, str] = {}
        self._what = what
        for entry, extent in _Scanner(fd, what).entries():
            self._add(entry, extent)

    def find(self, name: str) -> Extent | None:
        """The file of that name, through links within the archive; None where there is none."""
        name = posixpath.normpath(name)
        for _ in range(MAX_LINKS):
            if name in self._files:
                return self._files[name]
            if name not in self._links:
                return None
            name = self._links[name]
        raise InvalidArgumentError(f"{self._what}: the links from {shorten(name)} have no end")

    def names(self) -> Iterator[str]:
        """Every name that `find` knows."""
        yield from self._files
        yield from self._links

    def _add(self, entry: _Entry, extent: Extent) -> None:
        name = self._inside(entry.name, entry.name)
        if entry.kind == b"5" or (entry.kind in _REGULAR and entry.name.endswith("/")):
            return
        if name in self._files or name in self._links:
            raise InvalidArgumentError(f"{self._what}: {shorten(name)} is there twice")
        if entry.kind in _REGULAR:
            self._files[name] = extent
        elif entry.kind == b"2":
            self._links[name] = self._inside(posixpath.join(posixpath.dirname(name), entry.target), name)
        elif entry.kind == b"1":
            self._links[name] = self._inside(entry.target, name)
        else:
            kind = _REFUSED.get(entry.kind, f"of the unknown type {entry.kind!a}")
            raise InvalidArgumentError(f"{self._what}: {shorten(name)} is {kind}")

    def _inside(self, path: str, name: str) -> str:
        """Normalise a path that must not leave the archive."""
        normal = posixpath.normpath(path)
        if posixpath.isabs(path) or normal == ".." or normal.startswith("../") or "\0" in path:
            raise InvalidArgumentError(f"{self._what}: {shorten(name)} climbs out of the archive")
        return normal


class _Scanner:
    """Walks the headers of one archive."""

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what
        self._end = os.fstat(fd).st_size
        self._offset = 0

    def entries(self) -> Iterator[tuple[_Entry, Extent]]:
        """Yield every entry that is not an extension of the next one."""
        extension: dict[str, str] = {}
        for _ in range(MAX_ENTRIES):
            entry = self._next_header()
            if entry is None:
                return
            if entry.kind in _EXTENSIONS:
                extension |= self._read_extension(entry)
                continue
            if extension:
                self._extend(entry, extension)
                extension = {}
            # Links and directories carry no data, whatever their size field says (POSIX: it is to be
            # ignored).
            size = entry.size if entry.kind in _REGULAR else 0
            yield entry, self._skip(entry, size)
        raise InvalidArgumentError(f"{self._what} has more than {MAX_ENTRIES} entries")

    def _next_header(self) -> _Entry | None:
        """Read one header; None at the end mark (a zero block), or at the end of a file that has none."""
        block = os.pread(self._fd, BLOCK, self._offset)
        if not block and self._offset:
            return None
        if len(block) < BLOCK:
            raise self._damaged("it is cut off within a header")
        if not any(block):
            return None
        if not _sum_is_right(block):
            if self._offset == 0:
                raise InvalidArgumentError(f"{self._what} is not a tar archive")
            raise self._damaged("a header's checksum is wrong")
        entry = self._parse_header(block)
        self._offset += BLOCK
        return entry

    def _parse_header(self, block: bytes) -> _Entry:
        fields = _HEADER.unpack(block)
        name = _cut(fields[0])
        # Only ustar has a prefix there; GNU keeps access times in the same bytes.
        if fields[9] == b"ustar\00000" and (prefix := _cut(fields[14])):
            name = f"{prefix}/{name}"
        return _Entry(name=name, kind=fields[7], size=self._number(fields[4]), target=_cut(fields[8]))

    def _number(self, field: bytes) -> int:
        """Read a number: octal digits, or base 256 where the first bit is set (GNU)."""
        if field[0] & 0x80:
            value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
            if field[0] & 0x40:
                raise self._damaged("a header has a negative number")
            return value
        digits = field.strip(b" \0")
        if digits.translate(None, b"01234567"):
            raise self._damaged("a header has a malformed number")
        return int(digits or b"0", 8)

    def _skip(self, entry: _Entry, size: int) -> Extent:
        extent = Extent(self._offset, size)
        left = self._end - self._offset
        if size > left:
            raise self._damaged(f"it is cut off: {shorten(entry.name)} has {size} bytes and {left} are left")
        self._offset += -(-size // BLOCK) * BLOCK
        return extent

    def _read_extension(self, entry: _Entry) -> dict[str, str]:
        """Read what an extended header says of the entry after it."""
        if entry.size > MAX_EXTENSION:
            raise self._damaged(f"an extended header has {entry.size} bytes")
        extent = self._skip(entry, entry.size)
        data = os.pread(self._fd, extent.size, extent.offset)
        if entry.kind == b"L":
            return {"path": _cut(data)}
        if entry.kind == b"K":
            return {"linkpath": _cut(data)}
        records = dict(self._pax_records(data))
        # A global header's values are defaults for all that follow; no writer gives names or sizes so.
        return records if entry.kind == b"x" else {}

    def _pax_records(self, data: bytes) -> Iterator[tuple[str, str]]:
        """Yield the records `<length> <key>=<value><newline>`; the length counts all of it."""
        start = 0
        while start < len(data):
            digits, blank, _ = data[start : start + 20].partition(b" ")
            end = start + (int(digits) if blank and digits.isdigit() else 0)
            record = data[start + len(digits) + 1 : end]
            key, equals, value = record.partition(b"=")
            if not equals or not value.endswith(b"\n") or end > len(data):
                raise self._damaged("an extended header is malformed")
            yield _decode(key), _decode(value[:-1])
            start = end

    def _extend(self, entry: _Entry, extension: dict[str, str]) -> None:
        if any(key.startswith("GNU.sparse.") for key in extension):
            raise InvalidArgumentError(f"{self._what}: {shorten(entry.name)} is a sparse file")
        entry.name = extension.get("path", entry.name)
        entry.target = extension.get("linkpath", entry.target)
        if "size" in extension:
            size = extension["size"]
            if not (size.isascii() and size.isdigit() and len(size) < 20):  # noqa: PLR2004 - 64 bits in decimal
                raise self._damaged("an extended header has a malformed size")
            entry.size = int(size)

    def _damaged(self, reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._what} is damaged at byte {self._offset}: {reason}")


def _sum_is_right(block: bytes) -> bool:
    """Whether a header's checksum holds; it counts its own field as blanks."""
    digits = block[_CHECKSUM].strip(b" \0")
    total = sum(block) - sum(block[_CHECKSUM]) + 8 * 0x20
    return digits.isdigit() and not digits.translate(None, b"01234567") and int(digits, 8) == total


def _cut(field: bytes) -> str:
    return _decode(field.partition(b"\0")[0])


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
