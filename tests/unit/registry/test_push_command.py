"""Tests of `nix2container push`: its flags, and how it shows how it goes on."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from imagekit import Layout, layer

from nixsnap.cli import nix2container
from nixsnap.cli.pushprogress import progress_on
from nixsnap.registry.progress import Outcome

DIGEST = "sha256:" + "0123456789abcdef" * 4
SHORT = "sha256:0123456789ab"


@attrs.define
class Call:
    archives: list[str]
    reference: str
    settings: dict[str, object]


@pytest.fixture
def calls(monkeypatch) -> list[Call]:
    """What was to be pushed."""
    made: list[Call] = []

    def push(archives, reference, **settings):
        made.append(Call([each.what for each in archives], str(reference), settings))
        return f"{reference}@{DIGEST}"

    monkeypatch.setattr("nixsnap.registry.push.push", push)
    monkeypatch.setattr("signal.signal", lambda *_arguments: None)
    return made


@pytest.fixture
def archive(tmp_path: Path) -> str:
    layout = Layout()
    layout.simple(layer(file="x"))
    return layout.write(tmp_path / "image.tar")


def test_flags(calls, archive, capsys):
    """The Go original's and ours."""
    flags = [
        "--plain-http",
        "--ref",
        "r.invalid/a:1",
        "--hosts-dir",
        "/",
        "--hosts-dir",
        "/usr",
        "--mount-from",
    ]
    assert (
        nix2container.main(["push", *flags, "r.invalid/base", "--mount-from", "x/y", archive, archive]) == 0
    )
    (call,) = calls
    assert (len(call.archives), call.reference) == (2, "r.invalid/a:1")
    assert call.settings["plain_http"] is True
    assert call.settings["hosts_dirs"] == [Path("/"), Path("/usr")]
    assert call.settings["mount_from"] == ["base", "x/y"]
    assert capsys.readouterr().out == f"r.invalid/a:1@{DIGEST}\n"


def test_defaults(calls, archive):
    """TLS, the tag `latest`, and the system's configuration; the Go original's single dash will do."""
    assert nix2container.main(["push", "-ref", "r.invalid/a", archive]) == 0
    (call,) = calls
    assert (call.reference, call.settings["plain_http"]) == ("r.invalid/a:latest", False)
    assert Path("/etc/containerd/certs.d") in call.settings["hosts_dirs"]


def test_from_standard_input(calls, archive, monkeypatch):
    """As `-`."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path(archive).read_bytes())))
    assert nix2container.main(["push", "--ref", "r.invalid/a", "-"]) == 0
    assert calls[0].archives == ["standard input"]


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--ref", "Not A Reference", "x"], 2, "'Not A Reference' is not an image reference"),
        (["--ref", "r.invalid/A", "x"], 2, "must be in lower case"),
        (["--ref", "https://r.invalid/a", "x"], 2, "is not an image reference"),
        (["--ref", "r.invalid/a", "/nowhere.tar"], 3, "'/nowhere.tar' does not exist"),
        (["--ref", "r.invalid/a", "--mount-from", "b:1", "x"], 2, "--mount-from 'b:1' is no repository"),
        (["--ref", "r.invalid/a", "--mount-from", "B", "x"], 2, "must be in lower case"),
        (
            ["--ref", "r.invalid/a", "--hosts-dir", "/nowhere", "x"],
            3,
            "--hosts-dir '/nowhere' is no directory",
        ),
    ],
)
def test_bad_input(calls, capsys, arguments, status, reason):
    """One line that names it; nothing is pushed."""
    assert nix2container.main(["push", *arguments]) == status
    out, err = capsys.readouterr()
    assert (out, calls) == ("", [])
    assert reason in err
    assert err.startswith("nix2container: ")


@pytest.mark.parametrize("arguments", [[], ["x"], ["--ref", "a"], ["--ref", "a", "--bogus", "x"]])
def test_usage(capsys, arguments):
    """Neither a reference nor an archive can be left out."""
    with pytest.raises(SystemExit) as caught:
        nix2container.main(["push", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_store_path(archive, capsys):
    """Of all names, this one is a mistake that someone will make."""
    assert nix2container.main(["push", "--ref", "nix:0/nix/store/x.tar", archive]) == 2
    assert "names a store path" in capsys.readouterr().err


def test_other_commands_do_without_http():
    """`--help` does not load urllib3."""
    code = (
        "import sys; from nixsnap.cli import nix2container; nix2container.make_parser(); "
        "sys.exit(bool({'urllib3', 'nixsnap.registry'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO) -> str:
    with progress_on(stream) as progress:
        progress.finished(DIGEST, 5 << 20, Outcome.THERE)
        progress.pushing(2, 3000 << 20)
        progress.reached(DIGEST, 1500, 2 << 20)
        progress.retrying("it answers 500")
        progress.finished(DIGEST, 2 << 20, Outcome.PUSHED)
        progress.finished(DIGEST, 0, Outcome.MOUNTED)
    return stream.getvalue()


def test_plain_lines():
    """One for each event, and nothing about bytes on their way."""
    assert show(io.StringIO()).splitlines() == [
        f"{DIGEST}: already there (5.0 MiB)",
        "pushing 2 blobs, 2.9 GiB",
        "it answers 500; trying again",
        f"{DIGEST}: pushed (2.0 MiB)",
        f"{DIGEST}: mounted (0 B)",
    ]


def test_bars(monkeypatch):
    """Drawn again and again in one place, below the lines that stay; gone in the end."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("nixsnap.cli.pushprogress.INTERVAL_SECONDS", 0)
    screen = rendered(show(Terminal()))
    assert screen == [
        f"{SHORT}  already there (5.0 MiB)",
        "it answers 500; trying again",
        f"{SHORT}  pushed (2.0 MiB)",
        f"{SHORT}  mounted (0 B)",
    ]


def test_bars_while_they_are_there(monkeypatch):
    """One for each blob under way and one for all, never wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("nixsnap.cli.pushprogress.INTERVAL_SECONDS", 0)
    stream = Terminal()
    with progress_on(stream) as progress:
        progress.pushing(2, 4 << 20)
        progress.reached(DIGEST, 1 << 20, 2 << 20)
        shown = rendered(stream.getvalue())
    assert shown[0] == f"{SHORT}  [###############               ]  1.0 "
    assert shown[1].startswith("0 of 2 blobs         [#######                       ]  1.0")
    assert all(len(line) < 60 for line in shown)


def test_dumb_terminal(monkeypatch):
    """Gets lines."""
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in show(Terminal())


def rendered(written: str) -> list[str]:
    """What a terminal shows in the end: it knows how to go up some lines and how to clear what is below."""
    lines: list[str] = []
    for part in written.split("\x1b["):
        number, letter = part[:1], part[1:2]
        if letter == "F":
            lines = lines[: len(lines) - int(number)]
        lines.extend(part.removeprefix("J").split("\n")[:-1] if part.startswith("J") else [])
    return lines
