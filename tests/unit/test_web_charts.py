"""Curves: right places, round numbers, bounded size."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fedsim.learning.objectives.classification import CLASSIFICATION
from fedsim.store.records import RoundRecord
from fedsim.web import charts


def record(number: int, **measured: float | None) -> RoundRecord:
    trained = {name: measured.pop(name) for name in list(measured) if name.startswith("train_")}
    return RoundRecord(number, "00" * 32, 10, {}, 0, 0, 1, (), 0.0, trained, measured)


def charts_of(rounds: list[RoundRecord], num_rounds: int) -> list[charts.Chart]:
    return charts.charts_of(rounds, num_rounds, CLASSIFICATION)


def test_without_a_measurement_there_is_no_chart() -> None:
    assert charts_of([], 10) == []
    assert charts_of([record(1)], 10) == []
    assert charts_of([record(1, loss=float("inf"))], 10) == []


def test_accuracy_runs_from_the_lower_left_to_its_place() -> None:
    (chart,) = charts_of([record(0, accuracy=0.0), record(10, accuracy=1.0)], 10)
    low, high = f"{charts.LEFT},{charts.HEIGHT - charts.BOTTOM}", f"{charts.WIDTH - charts.RIGHT},{charts.TOP}"
    assert [tuple(map(float, point.split(","))) for point in chart.curves[0].path.split()] == [
        tuple(map(float, point.split(","))) for point in (low, high)
    ]
    assert [tick.label for tick in chart.y_ticks] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_rounds_that_were_not_evaluated_leave_gaps_in_the_data_only() -> None:
    (_, loss) = charts_of([record(0, loss=2.0, accuracy=0.1), record(1, train_loss=1.0)], 5)
    assert json.loads(loss.data)["xs"] == [0, 1]
    assert json.loads(loss.data)["lines"] == [[2.0, None], [None, 1.0]]
    assert [curve.css for curve in loss.curves] == ["test", "train"]


def test_a_metric_of_which_nothing_is_known_has_a_curve_of_its_own_even_below_zero() -> None:
    (_, chart) = charts_of([record(0, accuracy=0.1, r2=-2.5), record(5, r2=0.5)], 5)
    assert (chart.name, str(chart.title)) == ("r2", "r2")
    assert [tick.label for tick in chart.y_ticks] == ["-3", "-2", "-1", "0", "1"]
    assert json.loads(chart.data)["range"] == [-3, 1]


def test_a_hundred_thousand_rounds_make_a_small_chart_that_ends_with_the_newest() -> None:
    rounds = [record(n, accuracy=n / 100_000) for n in range(100_001)]
    (chart,) = charts_of(rounds, 100_000)
    assert len(chart.curves[0].path.split()) == charts.MAX_POINTS
    assert chart.curves[0].last == "100.00 %"
    assert len(chart.data) < 50_000


@given(
    values=st.lists(st.floats(min_value=0, max_value=1e30), min_size=1, max_size=30),
    num_rounds=st.integers(min_value=1, max_value=100_000),
)
def test_whatever_is_measured_stays_within_the_picture(values: list[float], num_rounds: int) -> None:
    rounds = [record(number, loss=value) for number, value in enumerate(values) if number <= num_rounds]
    (chart,) = charts_of(rounds, num_rounds)
    points = [tuple(map(float, point.split(","))) for point in chart.curves[0].path.split()]
    assert all(charts.LEFT <= x <= charts.WIDTH - charts.RIGHT for x, _ in points)
    assert all(charts.TOP - 0.1 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1 for _, y in points)
    assert all(lower.at > upper.at for lower, upper in pairwise(chart.y_ticks))
    assert 2 <= len(chart.y_ticks) <= 12
