"""Results as a Markdown table, and that table in its place in a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

from bench.results import Results, Series, Unit
from bench.rows import SECTIONS, Of, Row, Target

BEGIN = "<!-- results: begin (written by tests/bench) -->"
END = "<!-- results: end -->"
TIMES = "\N{MULTIPLICATION SIGN}"
TO = "\N{EN DASH}"


def render(results: Results) -> str:
    """The facts about the run and a table for each section that something was measured for."""
    return "\n".join([*_environment(results), *_sections(results)])


def replace_in(document: Path, markdown: str) -> None:
    """Put `markdown` between the document's markers; ValueError when it does not have them, in order."""
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document}: lacks the lines {BEGIN!r} and {END!r}")
    document.write_text(f"{before}{BEGIN}\n\n{markdown.strip()}\n\n{END}{after}")


def _environment(results: Results) -> Iterator[str]:
    yield from ("| measured on | |", "| --- | --- |")
    yield from (f"| {name} | {value} |" for name, value in results.environment.items())


def _sections(results: Results) -> Iterator[str]:
    for section in SECTIONS:
        rows = [row for row in section.rows if _is_measured(row, results)]
        if not rows:
            continue
        yield f"\n### {section.title}\n"
        yield "| | nixsnap | set against | | ratio | target |"
        yield "| --- | --- | --- | --- | --- | --- |"
        yield from (_row(row, results) for row in rows)


def _is_measured(row: Row, results: Results) -> bool:
    return row.ours in results.series and (row.reference is None or row.reference in results.series)


def _row(row: Row, results: Results) -> str:
    ours = results.series[row.ours]
    reference = results.series[row.reference] if row.reference else None
    cells = (
        row.what,
        spread(ours),
        row.against,
        spread(reference) if reference else "",
        f"{TIMES}{ours.median / reference.median:.2f}" if reference else "",
        _target(row.target, ours, reference),
    )
    return f"| {' | '.join(cells)} |"


def _target(target: Target | None, ours: Series, reference: Series | None) -> str:
    if target is None:
        return ""
    if target.of is Of.RATIO:
        limit = f"{TIMES}{target.limit:.2f}"
    else:
        scale = _Scale.of(ours.unit, target.limit)
        limit = f"{scale.number(target.limit)}{scale.suffix}"
    verdict = "met" if target.is_met(ours, reference) else "**missed**"
    return f"{'≥' if target.at_least else '≤'} {limit}: {verdict}"


def spread(series: Series) -> str:
    """The median, with the smallest and the largest sample where there are several."""
    scale = _Scale.of(series.unit, series.median)
    middle, low, high = map(scale.number, (series.median, series.low, series.high))
    if low == middle == high:
        return f"{middle}{scale.suffix}"
    return f"{middle}{scale.suffix} ({low}{TO}{high})"


@attrs.frozen(kw_only=True)
class _Scale:
    """How people write a quantity of that size."""

    divisor: float
    suffix: str

    @classmethod
    def of(cls, unit: Unit, value: float) -> _Scale:
        match unit:
            case Unit.SECONDS if value < 1:
                return cls(divisor=1e-3, suffix=" ms")
            case Unit.SECONDS:
                return cls(divisor=1, suffix=" s")
            case Unit.BYTES:
                return cls(divisor=2**20, suffix=" MiB")
            case Unit.PER_SECOND:
                return cls(divisor=1, suffix="/s")
            case Unit.MOUNTS:
                return cls(divisor=1, suffix="")

    def number(self, value: float) -> str:
        """The value to about three digits."""
        scaled = value / self.divisor
        if scaled == round(scaled):
            return f"{scaled:,.0f}"
        decimals = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
        return f"{scaled:,.{decimals}f}"
