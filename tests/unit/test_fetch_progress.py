"""How a fetch is shown: lines on a pipe, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from nixsnap.cli import fetchprogress
from nixsnap.cli.fetchprogress import FetchText, bar_of, progress_on
from nixsnap.cli.terminal import LiveLines, bar, size
from nixsnap.nix.progress import Progress

HASH = "0" * 32


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set by hand; in seconds."""
    now = [100.0]
    monkeypatch.setattr(fetchprogress.time, "monotonic", lambda: now[0])
    return now


def at(done, *, total=10, **rest):
    return Progress(paths_done=done, paths_total=total, **rest)


def test_lines_on_a_pipe(clock):
    """One at once, one every few seconds, and one when all is there."""
    stream = io.StringIO()
    with progress_on(stream) as sink:
        for done, seconds in ((0, 0), (1, 1), (2, 6), (3, 7), (10, 7.5), (10, 8)):
            clock[0] = 100 + seconds
            sink(at(done))
    assert stream.getvalue().splitlines() == [
        "fetching: 0 of 10 paths",
        "fetching: 2 of 10 paths",
        "fetching: 10 of 10 paths",
    ]


def test_a_bar_on_a_terminal(clock, monkeypatch):
    """Drawn over itself every tenth of a second at most, with what is being fetched below, and gone in the end."""
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    with progress_on(stream) as sink:
        clock[0] += 2
        sink(at(1, bytes_done=1 << 20, bytes_total=4 << 20, current=(f"/nix/store/{HASH}-hello", "odd")))
        sink(at(2, bytes_done=2 << 20, bytes_total=4 << 20))  # too soon
        clock[0] += 1
        sink(at(3))
    shown = stream.getvalue()
    assert "1 of 10 paths, 1.0 MiB of 4.0 MiB, 512.0 KiB/s" in shown
    assert "\n  hello, odd\n" in shown
    assert "2 of 10" not in shown
    assert shown.endswith("\x1b[1F\x1b[J")
    sink(at(4))
    assert stream.getvalue() == shown


def test_a_dumb_terminal_gets_lines(monkeypatch):
    """It cannot write over them."""
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with progress_on(stream) as sink:
        sink(at(0))
    assert stream.getvalue() == "fetching: 0 of 10 paths\n"


def test_many_names_are_cut():
    """A few are shown, and how many more there are."""
    names = tuple(f"/nix/store/{HASH}-p{number}" for number in range(6))
    assert FetchText.current(Progress(current=names)) == "p0, p1, p2, p3 and 2 more"


def test_bars_never_overflow():
    """Totals that Nix did not know yet may be behind what is done; nothing to do is done."""
    assert bar(5, 4) == bar(1, 1) == bar(0, 0) == f"[{'#' * 30}]"
    assert bar(0, 4) == f"[{' ' * 30}]"
    assert bar_of(at(5)) == bar(5, 10)
    assert bar_of(at(5, bytes_done=1, bytes_total=2)) == bar(1, 2)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1.0 MiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes(count, text):
    """In the largest unit that fits."""
    assert size(count) == text


def test_lines_are_cut_to_the_terminal(monkeypatch):
    """A line that wraps could not be written over."""
    monkeypatch.setenv("COLUMNS", "11")
    stream = Terminal()
    LiveLines(stream).show(["x" * 50], above="y" * 50)
    assert stream.getvalue() == "\x1b[J" + "y" * 10 + "\n" + "x" * 10 + "\n"
