"""What commands say when something is wrong: one line that names the thing, a hint with the way out, and a status."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nixsnap.cli import main, serve
from nixsnap.cli.errors import reported
from nixsnap.errors import FailedPreconditionError
from nixsnap.sockets import socket_place


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nixsnap: the following arguments are required: COMMAND; see nixsnap --help\n"),
        (["serve", "--bogus"], "nixsnap: unrecognized arguments: --bogus; see nixsnap --help\n"),
        (["realise"], "nixsnap: the following arguments are required: WHAT; see nixsnap realise --help\n"),
        (
            ["rootless"],
            "nixsnap: the following arguments are required: COMMAND; see nixsnap rootless --help\n",
        ),
    ],
)
def test_usage_errors(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They say whose help to read."""
    with pytest.raises(SystemExit) as raised:
        main.main(words)
    assert (raised.value.code, capsys.readouterr().err) == (2, said)


def test_usage_errors_of_the_other_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Under its other name the daemon's command does the same."""
    with pytest.raises(SystemExit):
        serve.main(["surplus"])
    said = "nix-snapshotter: unrecognized arguments: surplus; see nix-snapshotter --help\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "run it as a user who may"),
        (errno.ENOTDIR, "name another place"),
        (errno.ENOSPC, "make room"),
    ],
)
def test_errors_of_the_system(number: int, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The file comes first, then the system's words, and below them the way out."""

    def fail() -> int:
        raise OSError(number, os.strerror(number), "/a/b")

    assert reported("nixsnap", fail) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"nixsnap: '/a/b': {os.strerror(number)}"
    assert hint in second


def test_configuration_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory, say: its name once, and the flag that names another."""
    assert main.main(["realise", "--config", str(tmp_path), "x"]) == 2
    assert capsys.readouterr().err == (
        f"nixsnap: configuration file '{tmp_path}': Is a directory\n  --config names another\n"
    )


def test_socket_that_cannot_be_made(tmp_path: Path) -> None:
    """Its address is named, with the reason and the flag; below a file, and where no file can be made at all."""
    (tmp_path / "file").touch()
    for address in (tmp_path / "file/s.sock", Path("/proc/self/s.sock")):
        with (
            pytest.raises(FailedPreconditionError, match=f"cannot make a socket at '{address}': ") as raised,
            socket_place(address),
        ):
            pass
        assert "--address" in (raised.value.hint or "")
