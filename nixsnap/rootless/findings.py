"""What is found out about a machine, as values."""

from __future__ import annotations

import enum

import attrs


class State(enum.StrEnum):
    """How it stands with one thing."""

    OK = "ok"
    NOTE = "note"
    """Containers run without it; something is lacking all the same."""
    MISSING = "missing"
    """Nothing works before this is there."""


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is called, the same on every machine.
        state: How it stands.
        detail: What was seen, in one line.
        remedy: How to get what lacks, where something does.
    """

    name: str
    state: State
    detail: str
    remedy: str | None = None


def ok(name: str, detail: str) -> Finding:
    """A thing that is as it should be."""
    return Finding(name=name, state=State.OK, detail=detail)


def note(name: str, detail: str, remedy: str) -> Finding:
    """A thing that one can do without."""
    return Finding(name=name, state=State.NOTE, detail=detail, remedy=remedy)


def missing(name: str, detail: str, remedy: str) -> Finding:
    """A thing that one cannot do without."""
    return Finding(name=name, state=State.MISSING, detail=detail, remedy=remedy)
