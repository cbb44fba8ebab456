"""The results of benchmarks: rows with a figure, what it is compared with, a bar, and whether the bar is held.

Values are in base units: seconds, bytes, bytes per second, or plain numbers.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

Scale = Literal["", "writes", "python", "sgemm"]
"""The figure of the calibration by which a bar in seconds is scaled; empty: none."""

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True)
class Bar:
    """What a row promises: its ratio, or its figure, is at most or at least `limit`."""

    on: Literal["ratio", "figure"]
    sign: Literal["≤", "≥"]
    limit: float
    scaled_by: Scale = ""

    def limit_here(self, scale: Mapping[str, float]) -> float:
        """The limit on this machine; `scale` is how many times slower than the reference it is, by calibration."""
        return self.limit * (scale[self.scaled_by] if self.scaled_by else 1.0)

    def met(self, found: float, scale: Mapping[str, float]) -> bool:
        """Whether a value holds the bar."""
        limit = self.limit_here(scale)
        return found <= limit if self.sign == "≤" else found >= limit

    def text(self, unit: str, scale: Mapping[str, float]) -> str:
        """For the table, such as `ratio ≥ 0.85` or `≤ 15 ms, here 19 ms`."""
        if self.on == "ratio":
            return f"ratio {self.sign} {self.limit:g}"
        here = f", here {show(self.limit_here(scale), unit)}" if self.scaled_by else ""
        return f"{self.sign} {show(self.limit, unit)}{here}"


def ratio_at_least(limit: float) -> Bar:
    """A bar on the ratio."""
    return Bar("ratio", "≥", limit)


def ratio_at_most(limit: float) -> Bar:
    """A bar on the ratio."""
    return Bar("ratio", "≤", limit)


def at_most(limit: float, scaled_by: Scale = "") -> Bar:
    """A bar on the figure."""
    return Bar("figure", "≤", limit, scaled_by)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        value: the figure, in the unit.
        unit: `s`, `B`, `B/s`, or empty for a plain number.
        against: the name of the floor or rival.
        reference: its figure, in the same unit.
        ratio: figure to reference; of the medians unless the median of the pairs is given.
        bar: what the row promises; None for information only.
        note: what else a reader must know, such as the number of processes.
    """

    what: str
    value: float
    unit: str = ""
    against: str = ""
    reference: float | None = None
    ratio: float | None = None
    bar: Bar | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.ratio is None and self.reference:
            object.__setattr__(self, "ratio", self.value / self.reference)

    def held(self, scale: Mapping[str, float]) -> bool | None:
        """Whether the bar is held; None if there is none, or no reference to compare with."""
        found = self.ratio if self.bar is not None and self.bar.on == "ratio" else self.value
        return None if self.bar is None or found is None else self.bar.met(found, scale)


def compare(
    what: str,
    ours: Sequence[float],
    others: Sequence[float],
    *,
    against: str,
    unit: str = "s",
    bar: Bar | None = None,
    note: str = "",
) -> Row:
    """A row of two samples taken in turn: their medians, and the median of the ratios of the pairs.

    What slows the machine for a while slows both halves of a pair, so the ratios of the pairs vary less than those of
    other combinations.
    """
    ratio = statistics.median(one / other for one, other in zip(ours, others, strict=True))
    return Row(what, statistics.median(ours), unit, against, statistics.median(others), ratio, bar, note)


class NotHereError(Exception):
    """Something that a benchmark compares with cannot be had on this machine; the message says what and why."""


@dataclass(frozen=True)
class Result:
    """The rows of one benchmark with the circumstances; `scale` is by the calibration, see `measure.Calibration`.

    `failure` says what went wrong, `missing` what cannot be had on this machine.
    """

    bench: str
    quick: bool
    machine: str
    calibration: dict[str, float]
    scale: dict[str, float]
    seconds: float
    rows: list[Row] = field(default_factory=list)
    failure: str = ""
    missing: str = ""

    def as_json(self) -> dict[str, Any]:
        """Everything in the table, with the bars as they are on this machine."""
        rows = []
        for row in self.rows:
            here = None if row.bar is None else row.bar.limit_here(self.scale)
            rows.append({**asdict(row), "limit_here": here, "held": row.held(self.scale)})
        return {**asdict(self), "rows": rows}

    def write(self, folder: Path) -> Path:
        """Write `<folder>/<bench>.json`; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.bench}.json"
        path.write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote."""
        given = json.loads(path.read_text(encoding="utf-8"))
        rows = []
        for row in given.pop("rows"):
            bar = Bar(**row["bar"]) if row["bar"] else None
            rows.append(Row(**{name: row[name] for name in Row.__dataclass_fields__} | {"bar": bar}))
        return cls(**given, rows=rows)


def show(value: float, unit: str) -> str:
    """A value with three significant digits and its unit: `78 ms`, `1.05 GB/s`, `0.118 s`."""
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit in {"B", "B/s"}:
        size, prefix = next((size, prefix) for size, prefix in _PREFIXES if abs(value) >= size or size == 1.0)
        return f"{value / size:.3g} {prefix}{unit}"
    number = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".rstrip()


def line(row: Row) -> str:
    """A row as one line, for those who watch a benchmark run."""
    other = "" if row.reference is None else f", {row.against} {show(row.reference, row.unit)}"
    return f"{row.what} {show(row.value, row.unit)}{other}{'' if row.ratio is None else f', ratio {row.ratio:.2f}'}"


def table(results: Sequence[Result]) -> Table:
    """All rows as one table."""
    title = "; ".join(dict.fromkeys(result.machine for result in results))
    quick = any(result.quick for result in results)
    made = Table(title=title, caption="--quick: few repetitions of small sizes, no measurement" if quick else None)
    for column, justify in (("what", "left"), ("figure", "right"), ("floor or rival", "left"), ("", "right")):
        made.add_column(column, justify="right" if justify == "right" else "left")
    for column in ("ratio", "bar", "held"):
        made.add_column(column, justify="right" if column == "ratio" else "left")
    for result in results:
        for row in result.rows:
            held = row.held(result.scale)
            made.add_row(
                f"{row.what} ({row.note})" if row.note else row.what,
                show(row.value, row.unit),
                row.against,
                "" if row.reference is None else show(row.reference, row.unit),
                "" if row.ratio is None else f"{row.ratio:.2f}",
                "" if row.bar is None else row.bar.text(row.unit, result.scale),
                {None: Text(""), True: Text("held", "green"), False: Text("not held", "bold red")}[held],
            )
        if result.failure:
            made.add_row(f"{result.bench}: {result.failure}", "", "", "", "", "", Text("failed", "bold red"))
        if result.missing:
            made.add_row(f"{result.bench}: {result.missing}", "", "", "", "", "", Text("not here", "yellow"))
        made.add_section()
    return made


def calibration_line(result: Result) -> str:
    """The calibration of a result, and how many times as long as on the reference machine each of it took."""
    parts = [f"{name} {show(value, 's')} (× {result.scale[name]:.2f})" for name, value in result.calibration.items()]
    return f"{result.bench}, {result.seconds:.0f} s; calibration: {', '.join(parts)}"


def print_results(results: Sequence[Result]) -> None:
    """Print the table, and the calibration taken in the run of each benchmark."""
    console = Console(width=max(150, Console().width))
    console.print(table(results))
    for result in results:
        console.print(calibration_line(result), highlight=False)
