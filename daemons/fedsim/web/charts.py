"""Charts of a task: as data for uPlot, and as geometry for an inline SVG that needs no JavaScript."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedsim.learning.metrics import TRAIN_PREFIX, MetricFormat, MetricSet
from fedsim.store.records import RoundMetrics, RoundRecord
from fedsim.web.i18n import Text, tr
from fedsim.web.views import metric_label

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 28
MAX_POINTS = 500
Point = tuple[int, float]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in the SVG, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One line: `css` is the class of its colour, `path` an SVG polyline, `last` the newest value."""

    label: Text
    css: str
    path: str
    last: str
    end: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """The content of a chart for the template; `data` is the JSON from which uPlot draws the same."""

    name: str
    title: Text
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    data: str


def rounds_to_draw(latest: int, evaluate_every: int) -> set[int]:
    """Choose about `MAX_POINTS` of the rounds up to `latest` from which curves are drawn.

    Tested rounds are chosen separately, otherwise rare tests would be missed. The step doubles, so that the same points
    are drawn again until the whole curve becomes coarser.
    """
    chosen = {latest}
    for first_step in (evaluate_every, 1):
        step = first_step
        while latest // step > MAX_POINTS // 2:
            step *= 2
        chosen.update(range(0, latest + 1, step))
    newest_test = latest - latest % evaluate_every
    # Tests run while the next rounds already train, so the newest may still be missing.
    return chosen | {newest_test, max(newest_test - evaluate_every, 0)}


def charts_of(rounds: Sequence[RoundMetrics | RoundRecord], num_rounds: int, metrics: MetricSet) -> list[Chart]:
    """Create a chart for each metric: its values on the test set, and those that clients report from their training.

    A chart without points is omitted.
    """
    names = {name for record in rounds for name in record.metrics}
    names |= {name.removeprefix(TRAIN_PREFIX) for record in rounds for name in record.train_metrics}
    made = []
    for metric in metrics.in_order(names):
        label = metric_label(metric)
        trained = TRAIN_PREFIX + metric.name
        on_test_set = _points((record.round, record.metrics.get(metric.name)) for record in rounds)
        in_training = _points((record.round, record.train_metrics.get(trained)) for record in rounds)
        series = [
            (tr("%(metric)s, test set", metric=label), "test", on_test_set),
            (tr("%(metric)s, training", metric=label), "train", in_training),
        ]
        made.append(_chart(metric.name, label, series, num_rounds, share=metric.format is MetricFormat.SHARE))
    return [chart for chart in made if chart is not None]


def _points(values: Iterable[tuple[int, float | None]]) -> list[Point]:
    return [(number, value) for number, value in values if value is not None]


def _chart(
    name: str, title: Text, series: list[tuple[Text, str, list[Point]]], num_rounds: int, *, share: bool
) -> Chart | None:
    kept = [(label, css, _thin([p for p in points if math.isfinite(p[1])])) for label, css, points in series]
    kept = [item for item in kept if item[2]]
    if not kept:
        return None
    values = [y for _, _, points in kept for _, y in points]
    y_marks = _marks(min(0.0, *values), max(1.0 if share else 0.0, *values, 1e-9))
    y_low, y_top = y_marks[0], y_marks[-1]
    x_marks = [
        round(mark) for mark in _marks(0.0, float(max(num_rounds, 1))) if mark <= num_rounds and mark == round(mark)
    ]

    def across(x: float) -> float:
        return round(LEFT + x / max(num_rounds, 1) * (WIDTH - LEFT - RIGHT), 1)

    def up(y: float) -> float:
        return round(HEIGHT - BOTTOM - (min(y, y_top) - y_low) / (y_top - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    def written(y: float) -> str:
        return f"{y * 100:.0f} %" if share else f"{y:g}"

    curves = tuple(
        Curve(
            label=label,
            css=css,
            path=" ".join(f"{across(x)},{up(y)}" for x, y in points),
            last=f"{points[-1][1] * 100:.2f} %" if share else f"{points[-1][1]:.4f}",
            end=(across(points[-1][0]), up(points[-1][1])),
        )
        for label, css, points in kept
    )
    return Chart(
        name=name,
        title=title,
        curves=curves,
        x_ticks=tuple(Tick(across(mark), str(mark)) for mark in x_marks),
        y_ticks=tuple(Tick(up(mark), written(mark)) for mark in y_marks),
        data=_data([points for _, _, points in kept], num_rounds, (y_low, y_top), share=share),
    )


def _thin(points: list[Point]) -> list[Point]:
    """At most `MAX_POINTS` evenly spaced points, including the newest: a curve has no more pixels."""
    if len(points) <= MAX_POINTS:
        return points
    step = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(i * step)] for i in range(MAX_POINTS)]


def _marks(low: float, high: float) -> list[float]:
    """About five round numbers from just below `low` to just above `high` (Heckbert, Graphics Gems 1990)."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(mark * step, 10) for mark in range(first, last + 1)]


def _data(series: list[list[Point]], num_rounds: int, y_range: tuple[float, float], *, share: bool) -> str:
    """The data for uPlot: a list of x and, for each line, a value or null at each x."""
    xs = sorted({x for points in series for x, _ in points})
    by_round: list[Callable[[int], float | None]] = [dict(points).get for points in series]
    lines = [[value(x) for x in xs] for value in by_round]
    return json.dumps({"xs": xs, "lines": lines, "end": num_rounds, "range": y_range, "share": share}, allow_nan=False)
