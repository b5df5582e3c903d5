"""Tests of `nixsnap.image.output`."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from nixsnap.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from nixsnap.image import output
from nixsnap.image.output import whole_file


@pytest.fixture(params=["unnamed", "named"])
def either_way(request: pytest.FixtureRequest, monkeypatch) -> str:
    """With unnamed temporary files, and on a file system that has none."""
    if request.param == "named":
        real_open = os.open

        def open_as_overlayfs_of_old(path, flags, *rest, **named):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return real_open(path, flags, *rest, **named)

        monkeypatch.setattr(output.os, "open", open_as_overlayfs_of_old)
    return request.param


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.usefixtures("either_way")
def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    """Not before, and with the mode that the umask leaves."""
    path = tmp_path / "out"
    with whole_file(str(path)) as stream:
        stream.write(b"content")
        stream.flush()
        assert not path.exists()

    umask = os.umask(0)
    os.umask(umask)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert names(tmp_path) == ["out"]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    """Not a byte of the new file, and all of the old one."""
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def write_and_fail() -> None:
        with whole_file(str(path)) as stream:
            stream.write(b"new")
            raise error

    with pytest.raises(error):
        write_and_fail()

    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


@pytest.mark.usefixtures("either_way")
def test_a_failure_to_rename_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    """The temporary name is taken back."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "made up")

    monkeypatch.setattr(output.Path, "rename", fail)
    with pytest.raises(OSError, match="made up"), whole_file(str(tmp_path / "out")):
        pass

    assert names(tmp_path) == []


@pytest.mark.usefixtures("either_way")
def test_an_old_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Who has the old one open goes on reading it; a link stays and what it leads to is replaced."""
    path = tmp_path / "out"
    path.write_bytes(b"old")
    (tmp_path / "link").symlink_to("out")
    with path.open("rb") as old, whole_file(str(tmp_path / "link")) as stream:
        stream.write(b"new")
    with path.open("rb") as new:
        assert new.read() == b"new"
    assert old.closed
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """A pipe, or a device such as /dev/stdout, is no file to replace."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received: list[bytes] = []
    reader = threading.Thread(daemon=True, target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    with whole_file(str(fifo)) as stream:
        stream.write(b"content")
    reader.join()

    assert received == [b"content"]
    assert fifo.is_fifo()


def test_a_full_disk_is_named() -> None:
    """Whatever is written, /dev/full has no room for it."""
    with pytest.raises(ResourceExhaustedError, match="no room for '/dev/full': No space left on device"):
        _write("/dev/full")


def _write(path: str) -> None:
    with whole_file(path) as stream:
        stream.write(b"x")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(InvalidArgumentError, match=f"'{tmp_path}' is a directory"), whole_file(str(tmp_path)):
        pass


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """It is not made, and the error names it."""
    with pytest.raises(NotFoundError, match="absent/out"), whole_file(str(tmp_path / "absent/out")):
        pass
    assert not (tmp_path / "absent").exists()
