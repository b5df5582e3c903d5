"""Getting at an archive's bytes in any order: in the file itself, or in a temporary copy."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tempfile
import zlib
from typing import BinaryIO, Final, cast

from nixsnap.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NixsnapError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from nixsnap.image.compression import PEEK, decompressed, detect
from nixsnap.image.digests import CHUNK
from nixsnap.nix.storepath import shorten

# Ten kilobytes of gzip can unpack to ten megabytes, so the archive's own size bounds nothing.
MAX_UNPACKED: Final = 256 << 30


def open_path(path: str | os.PathLike[str], *, scratch: str | None = None) -> int:
    """Open an archive of any supported compression for reading at any offset.

    Args:
        path: A file, or a pipe such as `/dev/stdin`.
        scratch: The directory for a temporary copy, which has no name there; the system's by default.

    Returns:
        A descriptor of the uncompressed bytes, owned by the caller. For a plain file it is the file itself.

    Raises:
        NotFoundError, PermissionDeniedError, InvalidArgumentError: There is no such file, we may not read
        it, it
            is a directory, or its compressed data is damaged.
        ResourceExhaustedError: No room for a temporary copy.
    """
    what = shorten(os.fspath(path))
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - the descriptor is what we want
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and not detect(os.pread(file.fileno(), PEEK, 0)):
                return os.dup(file.fileno())
            return open_stream(file, what=what, scratch=scratch)
    except OSError as exc:
        raise _cannot_read(what, exc) from exc


def open_stream(stream: BinaryIO, *, what: str, scratch: str | None = None) -> int:
    """Copy a stream to a temporary file without a name, unpacked if it is compressed.

    Args:
        stream: Read to its end; not closed.
        what: Its name, for messages.
        scratch: As for `open_path`.

    Returns:
        A descriptor of the copy, owned by the caller.

    Raises:
        InvalidArgumentError: Its compressed data is damaged, cut off or unpacks to more than
            `MAX_UNPACKED`. ResourceExhaustedError: No room for the copy.
    """
    head = _read_head(stream)
    source = decompressed(cast("BinaryIO", io.BufferedReader(_Prefixed(head, stream))), detect(head))
    with tempfile.TemporaryFile(dir=scratch) as copy:
        try:
            _copy(source, copy, what)
        except NixsnapError:
            raise
        except EOFError as exc:
            raise InvalidArgumentError(f"{what} is cut off within its compressed data") from exc
        except Exception as exc:
            if not _is_damage(exc):
                raise
            raise InvalidArgumentError(f"{what} is damaged: its compressed data is wrong ({exc})") from exc
        return os.dup(copy.fileno())


class _Prefixed(io.RawIOBase):
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._head[: len(buffer)] or self._stream.read(len(buffer))
        self._head = self._head[len(chunk) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _read_head(stream: BinaryIO) -> bytes:
    """Read the first `PEEK` bytes, of a pipe too, which may hand them out one by one."""
    head = b""
    while len(head) < PEEK and (chunk := stream.read(PEEK - len(head))):
        head += chunk
    return head


def _copy(source: BinaryIO, copy: BinaryIO, what: str) -> None:
    written = 0
    while chunk := source.read(CHUNK):
        written += len(chunk)
        if written > MAX_UNPACKED:
            raise InvalidArgumentError(f"{what} unpacks to more than {MAX_UNPACKED >> 30} GiB")
        try:
            copy.write(chunk)
        except OSError as exc:
            raise ResourceExhaustedError(f"no room to unpack {what}: {exc.strerror}") from exc
    copy.flush()


def _is_damage(exc: Exception) -> bool:
    """Whether a decompressor complains of its input; zstd has its error class in one of two modules."""
    return isinstance(exc, (gzip.BadGzipFile, zlib.error)) or type(exc).__name__ == "ZstdError"


def _cannot_read(what: str, exc: OSError) -> NixsnapError:
    if isinstance(exc, FileNotFoundError):
        return NotFoundError(f"{what} does not exist")
    if isinstance(exc, PermissionError):
        return PermissionDeniedError(f"{what} may not be read: {exc.strerror}")
    if isinstance(exc, IsADirectoryError):
        return InvalidArgumentError(f"{what} is a directory, not an archive")
    return FailedPreconditionError(f"{what} cannot be read: {exc.strerror}")
