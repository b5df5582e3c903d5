"""The protocol's values: every number takes eight bytes, little end first; strings are padded with zeros to eight.

What a peer sends is checked for size before it is read: a daemon that is none must not fill our memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

_NUMBER: Final = struct.Struct("<Q")
_ALIGNMENT: Final = 8
_STRING_LIMIT_BYTES: Final = 64 << 20  # the longest that Nix has reason to send is the log line of a build
_COUNT_LIMIT: Final = 10_000_000


class ProtocolError(Exception):
    """The peer said something that the protocol does not have, or broke off."""


class Stream(Protocol):
    """Where a peer's bytes come from: a buffered file."""

    def read(self, size: int, /) -> bytes | None:
        """Read exactly so many bytes, or fewer at the end."""
        ...


def number(value: int) -> bytes:
    """Encode a number, or a truth value."""
    return _NUMBER.pack(value)


def string(text: str) -> bytes:
    """Encode a string. Those of file names may hold any byte, as `os.fsdecode` made them."""
    data = text.encode(errors="surrogateescape")
    return b"".join((_NUMBER.pack(len(data)), data, bytes(-len(data) % _ALIGNMENT)))


def strings(texts: Iterable[str]) -> bytes:
    """Encode a list or a set."""
    encoded = [string(text) for text in texts]
    return b"".join((_NUMBER.pack(len(encoded)), *encoded))


def mapping(values: Mapping[str, str]) -> bytes:
    """Encode a map of strings."""
    return b"".join(
        (_NUMBER.pack(len(values)), *(string(key) + string(value) for key, value in values.items()))
    )


class Reader:
    """Decodes what a peer sends.

    Args:
        stream: Its bytes.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def number(self) -> int:
        """Read a number."""
        value: int
        (value,) = _NUMBER.unpack(self._exactly(_NUMBER.size))
        return value

    def string(self) -> str:
        """Read a string; bytes that are no UTF-8 become surrogates."""
        size = self.number()
        if size > _STRING_LIMIT_BYTES:
            raise ProtocolError(f"a string of {size} bytes")
        return self._exactly(size + -size % _ALIGNMENT)[:size].decode(errors="surrogateescape")

    def words(self) -> str:
        """Read text for people, which builders and caches may have written: what is no UTF-8 is replaced."""
        return self.string().encode(errors="surrogateescape").decode(errors="replace")

    def count(self) -> int:
        """Read the number of elements that follow."""
        value = self.number()
        if value > _COUNT_LIMIT:
            raise ProtocolError(f"a list of {value} elements")
        return value

    def strings(self) -> list[str]:
        """Read a list or a set."""
        return [self.string() for _ in range(self.count())]

    def _exactly(self, size: int) -> bytes:
        try:
            data = self._stream.read(size)
        except OSError as exc:  # the peer ended before it had read all that we sent
            raise ProtocolError(f"the connection broke: {exc.strerror}") from exc
        if data is None or len(data) != size:
            raise ProtocolError("the connection ended")
        return data
