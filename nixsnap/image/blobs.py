"""Blobs by digest, in a file that holds them or in memory; nothing is believed before it is verified."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO, cast

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import digests, document
from nixsnap.image.oci import Descriptor
from nixsnap.image.tarindex import Extent


class Window(io.RawIOBase):
    """Part of a file as a stream of its own; many may be open at once, in several threads."""

    def __init__(self, fd: int, extent: Extent) -> None:
        self._fd = fd
        self._extent = extent
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move as `io.IOBase.seek` says."""
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._extent.size}
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"seek to {position}")
        self._position = position
        return position

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]
        """Fill the buffer as far as the part goes."""
        left = max(0, self._extent.size - self._position)
        # A view, because io hands over a bytearray now and then, of which a slice would be a copy.
        part = memoryview(buffer)[:left]
        count = os.preadv(self._fd, [part], self._extent.offset + self._position) if part else 0
        self._position += count
        return count


def open_extent(fd: int, extent: Extent) -> BinaryIO:
    """Open part of a file as a buffered stream; `fd` stays the caller's and must outlive it."""
    return cast("BinaryIO", io.BufferedReader(Window(fd, extent), digests.CHUNK))


class Blobs:
    """The blobs of one archive.

    Args:
        fd: The file that the extents lie in; stays the caller's.
        what: The archive's name, for messages.
        blobs: Where each blob lies, or its content.
    """

    def __init__(self, fd: int, what: str, blobs: Mapping[str, Extent | bytes]) -> None:
        self._fd = fd
        self._what = what
        self._blobs = blobs
        self._verified: set[str] = set()

    def __contains__(self, digest: str) -> bool:
        return digest in self._blobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._blobs)

    def size(self, digest: str) -> int:
        """The blob's length in bytes, as it is.

        Raises:
            InvalidArgumentError: There is no such blob.
        """
        blob = self._find(digest)
        return len(blob) if isinstance(blob, bytes) else blob.size

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading and seeking; its content is not verified.

        Raises:
            InvalidArgumentError: There is no such blob.
        """
        blob = self._find(digest)
        return io.BytesIO(blob) if isinstance(blob, bytes) else open_extent(self._fd, blob)

    def read(self, descriptor: Descriptor) -> bytes:
        """Read a document (an index, a manifest, a config), verified.

        Raises:
            InvalidArgumentError: There is no such blob, it is longer than `document.MAX_DOCUMENT`, or it is
                not what its descriptor says.
        """
        self.verify_size(descriptor)
        document.check_length(descriptor.size, f"{self._what}: {descriptor.digest}")
        with self.open(descriptor.digest) as stream:
            raw = stream.read()
        self._compare(descriptor, digests.of_bytes(raw, algorithm=digests.algorithm_of(descriptor.digest)))
        return raw

    def verify_size(self, descriptor: Descriptor) -> None:
        """Check that the blob is there and has its descriptor's size.

        Raises:
            InvalidArgumentError: It has not; the message has both sizes.
        """
        size = self.size(descriptor.digest)
        if size != descriptor.size:
            raise InvalidArgumentError(
                f"{self._what}: {descriptor.digest} has {size} bytes; its descriptor says {descriptor.size}"
            )

    def verify(self, descriptor: Descriptor) -> None:
        """Check the blob's size and digest, reading all of it unless that has been done.

        Raises:
            InvalidArgumentError: It is not what its descriptor says, and how.
        """
        self.verify_size(descriptor)
        if descriptor.digest in self._verified:
            return
        with self.open(descriptor.digest) as stream:
            self._compare(
                descriptor, digests.of_stream(stream, algorithm=digests.algorithm_of(descriptor.digest))
            )
        self._verified.add(descriptor.digest)

    def _compare(self, descriptor: Descriptor, actual: str) -> None:
        if actual != descriptor.digest:
            raise InvalidArgumentError(
                f"{self._what}: the content of {descriptor.digest} has the digest {actual}"
            )

    def _find(self, digest: str) -> Extent | bytes:
        try:
            return self._blobs[digest]
        except KeyError:
            raise InvalidArgumentError(f"{self._what} lacks the blob {digest}") from None
