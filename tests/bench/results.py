"""What a run measured, as values and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import attrs

SCHEMA = 1


class Unit(StrEnum):
    """What a sample counts."""

    SECONDS = "s"
    BYTES = "B"
    PER_SECOND = "1/s"
    MOUNTS = "mounts"


def _floats(samples: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, samples))


@attrs.frozen(kw_only=True)
class Series:
    """Samples of one thing, in the order they were taken.

    Attributes:
        name: `benchmark/what`, by which `rows.py` and the plots find it.
        unit: What a sample counts.
        samples: At least one.
    """

    name: str
    unit: Unit = attrs.field(converter=Unit)
    samples: tuple[float, ...] = attrs.field(converter=_floats, validator=attrs.validators.min_len(1))

    @property
    def median(self) -> float:
        """The median sample."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The smallest sample."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The largest sample."""
        return max(self.samples)


@attrs.frozen(kw_only=True)
class Results:
    """A whole run.

    Attributes:
        environment: Facts about the machine and the run, by name, in the order they are to be shown.
        series: What was measured, by name.
    """

    environment: dict[str, str]
    series: dict[str, Series]

    @classmethod
    def of(cls, environment: dict[str, str], series: Iterable[Series]) -> Self:
        """The results of these series; ValueError when two have one name."""
        by_name: dict[str, Series] = {}
        for one in series:
            if one.name in by_name:
                raise ValueError(f"two series are named {one.name}")
            by_name[one.name] = one
        return cls(environment=environment, series=by_name)

    def write(self, path: Path) -> None:
        """Write them as JSON: samples in seconds, bytes, per second or mounts, as each series' unit says."""
        document = {
            "schema": SCHEMA,
            "environment": self.environment,
            "series": {
                name: {"unit": str(series.unit), "median": series.median, "samples": list(series.samples)}
                for name, series in self.series.items()
            },
        }
        path.write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote; ValueError when it is of another schema."""
        document: dict[str, Any] = json.loads(path.read_text())
        if document.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema {document.get('schema')}, not {SCHEMA}")
        return cls.of(
            document["environment"],
            (
                Series(name=name, unit=data["unit"], samples=data["samples"])
                for name, data in document["series"].items()
            ),
        )
