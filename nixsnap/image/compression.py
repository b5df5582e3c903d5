"""Compressed streams: told by their first bytes, as containerd tells them."""

from __future__ import annotations

import gzip
import importlib
import io
from typing import Any, BinaryIO, Final, cast

from nixsnap.errors import UnimplementedError

PEEK: Final = 10
_GZIP: Final = b"\x1f\x8b\x08"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
# A skippable frame, with which seekable zstd writers begin (RFC 8878, section 3.1.2): sixteen magic
# numbers.
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"


def detect(head: bytes) -> str:
    """Name the compression of data that begins with `head` (of `PEEK` bytes): "gzip", "zstd" or ""."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50):  # noqa: PLR2004
        return "zstd"
    return ""


def decompressed(stream: BinaryIO, compression: str) -> BinaryIO:
    """Read `stream` through the decompressor that `detect` named.

    Raises:
        UnimplementedError: It is zstd, and this Python has no module for it.
    """
    if compression == "gzip":
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream, mode="rb"))
    if compression == "zstd":
        return cast("BinaryIO", _open_zstd(stream))
    return stream


def _open_zstd(stream: BinaryIO) -> Any:
    """Open a stream with Python's own module (3.14 and later), else with the package `zstandard`."""
    for module_name in ("compression.zstd", "zstandard"):
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        if module_name == "zstandard":
            reader = module.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
            return io.BufferedReader(reader)
        return module.ZstdFile(stream)
    raise UnimplementedError(
        "zstd data needs Python 3.14 or the package zstandard", hint="pip install zstandard, or use gzip"
    )
