"""Tests of `nixsnap.image.spool` and `nixsnap.image.compression`."""

from __future__ import annotations

import errno
import gzip
import io
import os
import threading
from pathlib import Path

import pytest

from nixsnap.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnimplementedError,
)
from nixsnap.image import compression, spool

TEXT = b"some archive\n" * 1000


def zstd(raw: bytes, **settings) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="zstd data is made with the package zstandard")
    return zstandard.ZstdCompressor(**settings).compress(raw)


def content(fd: int) -> bytes:
    try:
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_open_path_unpacks(tmp_path: Path, pack) -> None:
    """Whatever the compression, what comes out can be read at any offset."""
    path = tmp_path / "a"
    path.write_bytes(pack(TEXT))

    assert content(spool.open_path(path)) == TEXT


def test_a_plain_file_is_not_copied(tmp_path: Path) -> None:
    """The descriptor is of the very file."""
    path = tmp_path / "a"
    path.write_bytes(TEXT)
    fd = spool.open_path(path)

    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_a_pipe_is_copied(tmp_path: Path, pack) -> None:
    """A pipe hands its bytes out once, here one by one at first; the copy has no name and goes where it is told."""
    read_fd, write_fd = os.pipe()
    raw = pack(TEXT)

    def feed() -> None:
        with os.fdopen(write_fd, "wb", buffering=0) as pipe:
            for byte in raw[:12]:
                pipe.write(bytes([byte]))
            pipe.write(raw[12:])

    writer = threading.Thread(daemon=True, target=feed)
    writer.start()
    with os.fdopen(read_fd, "rb") as pipe:
        fd = spool.open_stream(pipe, what="standard input", scratch=str(tmp_path))
    writer.join()

    assert os.fstat(fd).st_dev == tmp_path.stat().st_dev
    assert os.fstat(fd).st_nlink == 0
    assert list(tmp_path.iterdir()) == []
    assert content(fd) == TEXT


def test_a_fifo_by_name_is_copied(tmp_path: Path) -> None:
    """`/dev/stdin` and process substitution are names of pipes."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(daemon=True, target=fifo.write_bytes, args=(TEXT,))
    writer.start()

    assert content(spool.open_path(fifo)) == TEXT
    writer.join()


def test_several_frames_and_members_are_one() -> None:
    """Parallel compressors write many gzip members or zstd frames in a row."""
    for pack in (gzip.compress, zstd):
        packed = pack(TEXT[:5000]) + pack(TEXT[5000:])
        assert content(spool.open_stream(io.BytesIO(packed), what="x")) == TEXT


def test_zstd_may_begin_with_a_skippable_frame() -> None:
    """Seekable writers put their own data there."""
    packed = b"\x50\x2a\x4d\x18\x03\0\0\0xyz" + zstd(TEXT)

    assert content(spool.open_stream(io.BytesIO(packed), what="x")) == TEXT


@pytest.mark.parametrize("keep", [11, 50])
def test_cut_gzip_is_refused(keep: int) -> None:
    """Data that ends too early is named as what it is."""
    with pytest.raises(InvalidArgumentError, match=r"^x is cut off within its compressed data"):
        spool.open_stream(io.BytesIO(gzip.compress(TEXT)[:keep]), what="x")


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_damaged_data_is_refused(pack) -> None:
    """Data that was tampered with is named as what it is."""
    packed = bytearray(pack(os.urandom(5000)))
    packed[6:14] = b"\xff" * 8
    with pytest.raises(InvalidArgumentError, match=r"^x is damaged: its compressed data is wrong"):
        spool.open_stream(io.BytesIO(bytes(packed)), what="x")


def test_a_bomb_is_refused(monkeypatch) -> None:
    """What a small archive unpacks to has a limit."""
    monkeypatch.setattr(spool, "MAX_UNPACKED", 1 << 20)
    with pytest.raises(InvalidArgumentError, match=r"^x unpacks to more than"):
        spool.open_stream(io.BytesIO(gzip.compress(bytes((1 << 20) + 1))), what="x")


def test_a_full_disk_is_named(monkeypatch) -> None:
    """No room for the copy is the disk's fault, not the archive's."""

    class Full(io.BytesIO):
        def write(self, _data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spool.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(ResourceExhaustedError, match=r"^no room to unpack x: No space left on device"):
        spool.open_stream(io.BytesIO(TEXT), what="x")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and one that we may not read, each by name."""
    with pytest.raises(NotFoundError, match="absent' does not exist"):
        spool.open_path(tmp_path / "absent")
    with pytest.raises(InvalidArgumentError, match="is a directory, not an archive"):
        spool.open_path(tmp_path)
    # Root may read all there is, so the answer of open(2) is made up.
    denied = spool._cannot_read("'secret'", PermissionError(errno.EACCES, "Permission denied"))
    assert (type(denied), str(denied)) == (
        PermissionDeniedError,
        "'secret' may not be read: Permission denied",
    )


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"", ""),
        (b"\x1f", ""),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x50\x2a\x4d\x18", "zstd"),
        (b"\x5f\x2a\x4d\x18", "zstd"),
        (b"\x60\x2a\x4d\x18", ""),
        (b"blobs/\0\0\0\0", ""),
    ],
)
def test_detect(head: bytes, name: str) -> None:
    """gzip, zstd, and the skippable frames that zstd data may begin with (RFC 8878)."""
    assert compression.detect(head) == name


def test_zstd_needs_a_module(monkeypatch) -> None:
    """Where Python has none, the message says which would do."""

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(compression.importlib, "import_module", absent)
    with pytest.raises(UnimplementedError, match=r"Python 3\.14 or the package zstandard"):
        spool.open_stream(io.BytesIO(b"\x28\xb5\x2f\xfd" + bytes(20)), what="x")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Neither success nor failure leaks one."""
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(TEXT)[:50])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(InvalidArgumentError):
            spool.open_path(path)
        os.close(spool.open_stream(io.BytesIO(TEXT), what="x"))

    assert len(list(Path("/proc/self/fd").iterdir())) == before
