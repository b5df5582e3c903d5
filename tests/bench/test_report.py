"""The report of the benchmarks: their figures as JSON, as a table and as plots. Nothing here measures."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from bench import table
from bench.results import Results, Series, Unit
from bench.rows import SECTIONS, Of, Row, Target
from bench.sampling import interleaved

DOCUMENT = Path(__file__).parents[2] / "docs/benchmarks.md"


def every_series() -> Results:
    """Results that have all the series any row asks for."""
    rows = [row for section in SECTIONS for row in section.rows]
    names = {name for row in rows for name in (row.ours, row.reference) if name}
    extra = [
        f"density/next-{kind}-beside-{beside}"
        for kind in ("nix", "plain")
        for beside in ("nothing", "plain", "nix")
    ]
    series = [
        Series(name=name, unit=Unit.SECONDS, samples=[0.1, 0.11 + number / 1000, 0.3])
        for number, name in enumerate(sorted({*names, *extra}))
    ]
    return Results.of({"kernel": "6.1"}, series)


def test_json_keeps_everything(tmp_path: Path) -> None:
    """Results read back are the results written."""
    results = every_series()
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results


def test_other_schema_is_refused(tmp_path: Path) -> None:
    """A file of another schema is not taken for results."""
    (tmp_path / "results.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 99"):
        Results.read(tmp_path / "results.json")


def test_series_of_one_name_are_refused() -> None:
    """Two benchmarks cannot overwrite each other's figures unnoticed."""
    series = Series(name="a", unit=Unit.SECONDS, samples=[1])
    with pytest.raises(ValueError, match="a"):
        Results.of({}, [series, series])


@pytest.mark.parametrize(
    ("unit", "samples", "text"),
    [
        (Unit.SECONDS, [0.1184, 0.11, 0.13], "118 ms (110\N{EN DASH}130)"),
        (Unit.SECONDS, [2.5, 2, 21.26], "2.50 s (2\N{EN DASH}21.3)"),
        (Unit.BYTES, [3 * 2**20], "3 MiB"),
        (Unit.PER_SECOND, [1234.5, 999, 2000], "1,234/s (999\N{EN DASH}2,000)"),
        (Unit.MOUNTS, [2, 2], "2"),
    ],
)
def test_spread(unit: Unit, samples: list[float], text: str) -> None:
    """A series is shown as its median and, where they differ, its extremes, all to the same scale."""
    assert table.spread(Series(name="a", unit=unit, samples=samples)) == text


@pytest.mark.parametrize(
    ("target", "ours", "reference", "met"),
    [
        (Target(limit=1.1, of=Of.RATIO), 1.1, 1.0, True),
        (Target(limit=1.1, of=Of.RATIO), 1.2, 1.0, False),
        (Target(limit=1.0, of=Of.RATIO, at_least=True), 0.9, 1.0, False),
        (Target(limit=3, of=Of.MEDIAN), 3, None, True),
        (Target(limit=340, of=Of.MEDIAN, at_least=True), 339, 1.0, False),
    ],
)
def test_target(target: Target, ours: float, reference: float | None, met: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A target bounds the median or the ratio of medians, from above or from below."""
    other = None if reference is None else Series(name="b", unit=Unit.MOUNTS, samples=[reference])
    assert target.is_met(Series(name="a", unit=Unit.MOUNTS, samples=[ours]), other) is met


def test_table_leaves_out_what_was_not_measured() -> None:
    """Rows appear for what was measured with its counterpart, and headings for such rows only."""
    one = Series(name="start/nix-200", unit=Unit.SECONDS, samples=[0.2])
    assert "paths" not in table.render(Results.of({}, [one]))
    plain = Series(name="start/plain", unit=Unit.SECONDS, samples=[0.1])
    shown = table.render(Results.of({}, [one, plain]))
    expected = (
        "| Nix image, 200 paths | 200 ms | plain image, overlayfs | 100 ms | ×2.00 | ≤ ×1.10: **missed** |"  # noqa: RUF001 - as printed
    )
    assert expected in shown.splitlines()
    assert shown.count("###") == 1


def test_every_row_is_shown() -> None:
    """A whole run fills the whole table: each line has six cells."""
    shown = table.render(every_series())
    rows: list[Row] = [row for section in SECTIONS for row in section.rows]
    for row in rows:
        assert any(
            line.startswith(f"| {row.what} |") and line.count(" |") == 6 for line in shown.splitlines()
        ), row.what


def test_table_goes_between_the_markers(tmp_path: Path) -> None:
    """Only what lies between the markers is replaced, however often; a document without them is refused."""
    document = tmp_path / "benchmarks.md"
    document.write_text(f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n")
    table.replace_in(document, "new")
    table.replace_in(document, "newer")
    assert document.read_text() == f"above\n{table.BEGIN}\n\nnewer\n\n{table.END}\nbelow\n"
    document.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the lines"):
        table.replace_in(document, "new")


def test_document_has_a_place_for_the_results() -> None:
    """docs/benchmarks.md can take a table, and shows every plot that is drawn."""
    text = DOCUMENT.read_text()
    assert text.index(table.BEGIN) < text.index(table.END)
    for name in ("start", "density", "cycles"):
        assert f"(bench-{name}.svg)" in text


def test_plots_are_deterministic(tmp_path: Path) -> None:
    """The same results give the same files, byte for byte; what was not measured is not drawn."""
    pytest.importorskip("matplotlib")
    from bench import plots  # noqa: PLC0415 - which needs matplotlib

    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append(plots.draw(every_series(), tmp_path / name))
    assert [file.name for file in files[0]] == ["bench-start.svg", "bench-density.svg", "bench-cycles.svg"]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert plots.draw(Results.of({}, []), tmp_path) == []


def test_interleaved_takes_turns() -> None:
    """Every variant is sampled once a round, none always first, and the warm-up's samples are dropped."""
    order: list[str] = []

    def sample(name: str) -> float:
        order.append(name)
        return len(order)

    taken = interleaved({name: functools.partial(sample, name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert taken == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}
