"""The progress line: on a terminal only, throttled, and gone in the end."""

from __future__ import annotations

import io

import pytest

from nixsnap.cli import progress as progress_module
from nixsnap.cli.progress import progress_on

ERASE = "\r\x1b[K"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set by hand; in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def go_on(progress, clock, *, step_seconds: float) -> None:
    """Report a load of two steps of 1 MiB and of two layers."""
    progress.storing(2 << 20)
    for _ in range(2):
        clock[0] += step_seconds
        progress.stored(1 << 20)
    progress.unpacking(2)
    for _ in range(2):
        clock[0] += step_seconds
        progress.unpacked()


def test_nothing_on_a_pipe(clock):
    """A log or a pipe gets not one byte."""
    stream = io.StringIO()
    with progress_on(stream) as progress:
        go_on(progress, clock, step_seconds=1)
    assert stream.getvalue() == ""


def test_line_on_a_terminal(clock):
    """One line that is written over, and empty in the end."""
    stream = Terminal()
    with progress_on(stream) as progress:
        go_on(progress, clock, step_seconds=1)
    assert stream.getvalue().split(ERASE) == [
        "",
        "storing: 1.0 of 2.0 MiB",
        "storing: 2.0 of 2.0 MiB",
        "unpacking: 0 of 2 layers",
        "unpacking: 1 of 2 layers",
        "unpacking: 2 of 2 layers",
        "",
    ]


def test_line_is_throttled(clock):
    """Steps closer than a tenth of a second are not shown, but that unpacking has begun is: it may take minutes."""
    stream = Terminal()
    with progress_on(stream) as progress:
        go_on(progress, clock, step_seconds=0.01)
    assert stream.getvalue().split(ERASE) == ["", "unpacking: 0 of 2 layers", ""]


def test_line_goes_when_the_load_fails():
    """An error's message does not follow half a progress line."""
    stream = Terminal()
    showing = progress_on(stream)
    showing.__enter__().unpacking(1)
    showing.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert stream.getvalue().endswith(ERASE)
