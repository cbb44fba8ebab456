"""Statistics without training: equal to those of all data together, and no more than institutions let leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.data.unprepared import unprepared_columns
from fedsim.errors import BadInput
from fedsim.learning.column_statistics import (
    ALL_FEATURES,
    BINS,
    DEVIATIONS,
    Column,
    NodeStatistics,
    StatisticsRule,
    feature_columns,
    node_statistics,
    target_columns,
)
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.pooled_statistics import QUANTILES, pooled_statistics
from fedsim.learning.simulate import simulate
from fedsim.settings import SettingsError, parse_settings

LEAST = 10
Allowed = Literal["none", "sums", "extremes"]


def rule(allowed: Allowed = "sums", *, guarded: bool = False) -> StatisticsRule:
    return StatisticsRule(allowed=allowed, min_count=LEAST, guarded=guarded)


def labelled(labels: Any, features: Any = None, **more: Any) -> Examples:
    labels = np.asarray(labels)
    return Examples(np.zeros((len(labels), 1), np.float32) if features is None else features, labels, **more)


def of(values: Any, labels: Any = None, *, by: StatisticsRule | None = None, name: str = "x") -> NodeStatistics:
    values = np.asarray(values, np.float64)
    examples = labelled(np.zeros(len(values), np.int64) if labels is None else labels)
    return node_statistics({name: Column(values)}, examples, ("no", "yes"), by or rule())


def pooled(*nodes: NodeStatistics) -> dict[str, Any]:
    answers = {f"node-{number}": one.model_dump(mode="json") for number, one in enumerate(nodes)}
    return pooled_statistics(answers, ("x",), ("no", "yes"))


def test_counts_means_and_quantiles_are_those_of_all_data_together() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(40, 12, 900), rng.gamma(2.0, 20.0, 2500), rng.normal(55, 3, 400)]
    parts[1][::50] = np.nan
    found = pooled(*(of(part) for part in parts))["columns"][0]
    whole = np.concatenate(parts)
    known = whole[~np.isnan(whole)]
    assert (found["count"], found["missing"], found["missing_hidden"]) == (len(known), 50, [])
    assert found["mean"] == pytest.approx(known.mean(), rel=1e-12)
    assert found["deviation"] == pytest.approx(known.std(), rel=1e-9)
    width = float(2 * DEVIATIONS * max(np.nanstd(part) for part in parts) / BINS)
    for order in QUANTILES:
        assert found["quantiles"][str(order)] == pytest.approx(np.quantile(known, order), abs=2 * width), order
    assert sum(found["histogram"]["counts"]) == pytest.approx(0.98 * len(known), rel=0.01)
    assert found["nodes"]["node-2"]["mean"] == pytest.approx(parts[2].mean())


def test_quantiles_of_few_examples_do_not_stretch_to_where_none_is() -> None:
    values = np.random.default_rng(6).normal(0, 1, 80)
    quantiles = pooled(of(values))["columns"][0]["quantiles"]
    for order in QUANTILES:
        assert quantiles[str(order)] == pytest.approx(np.quantile(values, order), abs=0.4), order


def test_extremes_are_there_only_if_every_node_shows_them_and_never_of_guarded_data() -> None:
    values = np.arange(1000.0)
    shown = of(values, by=rule("extremes"))
    both = pooled(shown, of(values + 500, by=rule("extremes")))["columns"][0]
    assert (both["least"], both["greatest"]) == (0, 1499)
    one = pooled(shown, of(values))["columns"][0]
    assert (one["least"], one["greatest"]) == (None, None)
    guarded = of(values, by=rule("extremes", guarded=True)).columns["x"]
    assert guarded is not None
    assert guarded.least is None
    assert guarded.low < 0


def test_no_count_of_fewer_values_than_the_rule_says_leaves() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_t(2, 3000)
    column = of(values).columns["x"]
    assert column is not None
    assert sum(size for size, _, _ in column.histogram) == BINS
    assert sum(number for _, number, _ in column.histogram) == len(values)
    assert min(number for _, number, _ in column.histogram) >= LEAST
    few = of([1.0, 2.0, 3.0] + [np.nan] * 50)
    assert few.columns == {"x": None}
    assert pooled(few)["columns"][0]["nodes"] == {"node-0": None}


def test_few_missing_values_are_not_counted_and_do_not_follow_from_the_count() -> None:
    values = np.arange(100.0)
    values[:3] = np.nan
    column = of(values).columns["x"]
    assert column is not None
    assert (column.count, column.missing) == (100, None)
    assert sum(number for _, number, _ in column.histogram) == 100, "nor from the histogram"
    assert column.total / column.count == pytest.approx(np.nanmean(values), abs=0.5)
    for mean in (column.total / column.count, *(mean for _, _, mean in column.histogram)):
        assert mean == pytest.approx(round(mean), abs=1e-9), "nor from a mean that is a fraction with this divisor"
    assert pooled(of(values))["columns"][0]["missing_hidden"] == ["node-0"]
    exact = of(np.arange(100.0)).columns["x"]
    assert exact is not None
    assert (exact.count, exact.missing) == (100, 0)


def test_of_guarded_data_the_bins_do_not_say_how_few_are_missing_either() -> None:
    values = np.arange(100.0)
    values[:3] = np.nan
    column = of(values, by=rule(guarded=True)).columns["x"]
    assert column is not None
    assert (column.count, column.missing) == (100, None)
    assert sum(number for _, number, _ in column.histogram) == 100


def test_small_counts_of_labels_are_left_out_with_what_would_give_them_away() -> None:
    found = of(np.arange(103.0), [0] * 100 + [1] * 3)
    assert found.labels == {"no": None, "yes": None}, (
        "103 examples are known: 100 of one label would say 3 of the other"
    )
    plain = of(np.arange(120.0), [0] * 100 + [1] * 20)
    assert pooled(plain, found)["labels"] == [
        {"label": "no", "nodes": {"node-0": 100, "node-1": None}},
        {"label": "yes", "nodes": {"node-0": 20, "node-1": None}},
    ]


def test_numbers_of_guarded_data_are_rounded() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(1234.5678, 23.456, 4321)
    found = of(values, by=rule(guarded=True))
    column = found.columns["x"]
    assert column is not None
    assert (found.examples, column.count) == (4300, 4300)
    mean = column.total / column.count
    assert mean == pytest.approx(round(mean), abs=1e-9), "a deviation of 23 gives the mean to 1"
    assert mean == pytest.approx(values.mean(), abs=0.5)
    assert all(number % 10 == 0 for _, number, _ in column.histogram if number >= 100)


def test_the_answer_does_not_depend_on_who_else_takes_part_and_is_the_same_each_time() -> None:
    values = np.random.default_rng(4).normal(0, 1, 500)
    assert of(values).model_dump_json() == of(values.copy()).model_dump_json()


def test_a_constant_column_has_one_value_at_each_quantile() -> None:
    found = pooled(of(np.full(50, 7.0)), of(np.full(50, 7.0)))["columns"][0]
    assert (found["mean"], found["deviation"], found["histogram"]) == (7, 0, None)
    assert found["quantiles"]["0.5"] == pytest.approx(7)


def test_images_are_one_column_whose_counts_are_behind_enough_examples() -> None:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (40, 8, 8), np.uint8)
    examples = labelled(rng.integers(0, 2, 40), images, scale=255.0)
    columns = feature_columns(examples)
    assert set(columns) == {ALL_FEATURES}
    column = node_statistics(columns, examples, ("no", "yes"), rule()).columns[ALL_FEATURES]
    assert column is not None
    assert column.count == images.size
    assert column.total / column.count == pytest.approx((images / 255).mean())
    assert min(number for _, number, _ in column.histogram) >= LEAST * 64
    short = labelled(np.zeros(30, np.int64), np.ones((30, 3), np.float32))
    assert set(feature_columns(short)) == {"0", "1", "2"}


def test_targets_count_by_their_kind() -> None:
    numbers = labelled(np.ones((30, 2), np.float32), targets="numbers")
    assert set(target_columns(numbers, ("weight", "height"))) == {"weight", "height"}
    assert node_statistics({}, numbers, ("weight", "height"), rule()).labels == {}
    flags = labelled(np.tile(np.array([[1, 0]], np.float32), (30, 1)), targets="flags")
    assert node_statistics({}, flags, ("a", "b"), rule()).labels == {"a": 30, "b": None}
    most = labelled(np.array([[1.0, 1.0]] * 27 + [[1.0, 0.0]] * 3, np.float32), targets="flags")
    assert node_statistics({}, most, ("a", "b"), rule()).labels["b"] is None, "3 without it"
    tokens = labelled(np.array([[0, 0, 1]] * 12 + [[0, 0, 0]] * 12), targets="tokens")
    assert node_statistics({}, tokens, ("a", "b"), rule()).labels == {"a": 24, "b": 12}


def test_an_answer_that_is_no_statistics_does_not_count_and_is_named() -> None:
    good = of(np.arange(100.0)).model_dump(mode="json")
    for wrong in ({}, {**good, "examples": -1}, {**good, "columns": {"x": {"count": 10}}}, 7):
        found = pooled_statistics({"a": good, "b": wrong}, ("x",), ())
        assert list(found["left_out"]) == ["b"]
        assert found["columns"][0]["count"] == 100
    infinite = {**good, "columns": {"x": {**good["columns"]["x"], "total": float("inf")}}}
    assert list(pooled_statistics({"b": infinite}, ("x",), ())["left_out"]) == ["b"]


@pytest.mark.parametrize("more", [{}, {"validation_share": 0.3}, {"test_share": 0.25}])
def test_columns_of_a_table_are_read_as_they_are_in_the_file_in_the_order_of_the_examples(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    rows = [f"{number},{'' if number % 7 == 0 else number * 2},{number % 2}" for number in range(200)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *rows]))
    config = DataSetConfig.model_validate(
        {
            "name": "t",
            "path": "t.csv",
            "access": "open",
            "label_column": "y",
            "scale": "standard",
            "missing": "mean",
            **more,
        }
    )
    found = unprepared_columns(config, tmp_path)
    assert found is not None
    names, values = found
    train = load_dataset(config, tmp_path).train
    assert names == ("a", "b")
    assert len(values) == len(train)
    assert (values[:, 0] % 2 == train.labels).all()
    assert (np.isnan(values[:, 1]) == (values[:, 0] % 7 == 0)).all()


def test_a_statistics_task_takes_no_setting_of_training() -> None:
    settings, _ = parse_settings({"kind": "statistics", "dataset": "d", "nodes": "a, b", "purpose": "look"})
    assert (settings.partition, settings.trains) == ("local", False)
    again, _ = parse_settings(settings.model_dump(mode="json"))
    assert again == settings
    with pytest.raises(SettingsError, match="num_rounds: does not apply to a task of the kind statistics") as error:
        parse_settings({"kind": "statistics", "num_rounds": 3, "strategy": "median"})
    assert set(error.value.problems) == {"num_rounds", "strategy"}


def test_there_is_nothing_to_simulate_of_it() -> None:
    settings, _ = parse_settings({"kind": "statistics", "dataset": "d"})
    examples = labelled([0, 1] * 10, np.zeros((20, 4), np.float32))
    with pytest.raises(BadInput, match="trains nothing: there is nothing to simulate"):
        simulate(settings, DataSet(examples, examples, 2))


def test_none_leaves_without_the_rule() -> None:
    from fedsim.worker.data_statistics import statistics_of  # noqa: PLC0415 - with torch
    from fedsim.worker.jobs import Load  # noqa: PLC0415

    known: dict[str, Any] = {"statistics": rule("none"), "assignment": None}
    job = Load.model_construct(**known)
    with pytest.raises(BadInput, match="lets no statistics of its data leave"):
        statistics_of(job, labelled([0, 1]), None)
