"""The robust rules against their papers' formulas, written down directly: float64, whole vectors, no shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.errors import BadInput
from fedsim.learning.aggregate import run_passes
from fedsim.learning.examples import FloatArray
from fedsim.learning.randomness import generator
from fedsim.learning.strategies import StepContext, check_cohort, make_strategy
from fedsim.settings import TaskSettings

Vectors = NDArray[np.float64]
COUNT, SIZE, ATTACKERS, SEED, ROUND = 13, 57, 2, 5, 3


@pytest.fixture(scope="module")
def received() -> FloatArray:
    return np.random.default_rng(1).normal(size=SIZE).astype(np.float32)


@pytest.fixture(scope="module")
def updates(received: FloatArray) -> list[FloatArray]:
    """Honest clients near the model, and two far away."""
    rng = np.random.default_rng(2)
    honest = [received + 0.1 * rng.normal(size=SIZE).astype(np.float32) for _ in range(COUNT - ATTACKERS)]
    return [np.full(SIZE, 9, np.float32), *honest, rng.normal(size=SIZE).astype(np.float32) * 30]


def combined(name: str, updates: list[FloatArray], received: FloatArray, **options: Any) -> Vectors:
    """What the strategy makes of the updates, with passes over blocks of 10."""
    strategy = make_strategy(TaskSettings(strategy=name, strategy_options=options))
    weights = [strategy.weight(10 + number, 1) for number in range(len(updates))]
    context = StepContext(ROUND, len(updates), 100, SEED)
    prepared = run_passes(strategy.prepare(weights, context), received, updates, 10)
    return strategy.combine(updates, weights, received.astype(np.float64), prepared)


# ---------------------------------------------------------------- the papers' formulas


def trimmed_mean(x: Vectors) -> Vectors:
    return np.sort(x, axis=0)[ATTACKERS : len(x) - ATTACKERS].mean(axis=0)


def scores(x: Vectors) -> list[float]:
    return [
        sum(sorted(float(np.sum((one - other) ** 2)) for j, other in enumerate(x) if j != i)[: len(x) - ATTACKERS - 2])
        for i, one in enumerate(x)
    ]


def krum(x: Vectors) -> Vectors:
    return x[int(np.argmin(scores(x)))]


def multi_krum(x: Vectors) -> Vectors:
    return x[np.argsort(scores(x))[: len(x) - ATTACKERS]].mean(axis=0)


def bulyan(x: Vectors) -> Vectors:
    left = list(x)
    chosen = [left.pop(int(np.argmin(scores(np.array(left))))) for _ in range(len(x) - 2 * ATTACKERS)]
    found = []
    for column in np.array(chosen).T:
        nearest = sorted(column, key=lambda value: abs(value - np.median(column)))
        found.append(np.mean(nearest[: len(chosen) - 2 * ATTACKERS]))
    return np.array(found)


def geometric_median(x: Vectors) -> Vectors:
    v = x.mean(axis=0)
    for _ in range(8):
        beta = np.array([1 / max(1e-6, float(np.linalg.norm(v - w))) for w in x])
        v = (beta[:, None] * x).sum(axis=0) / beta.sum()
    return v


def centered_clipping(x: Vectors, center: Vectors) -> Vectors:
    v = center
    for _ in range(3):
        v = v + np.mean([(w - v) * min(1.0, 1.0 / float(np.linalg.norm(w - v))) for w in x], axis=0)
    return v


def mixed(x: Vectors) -> Vectors:
    """Nearest-neighbour mixing."""
    return np.array([x[np.argsort(np.sum((x - one) ** 2, axis=1))[: len(x) - ATTACKERS]].mean(axis=0) for one in x])


def bucketed(x: Vectors) -> Vectors:
    order = generator(SEED, "bucketing", ROUND).permutation(len(x))
    return np.array([x[order[start : start + 2]].mean(axis=0) for start in range(0, len(x), 2)])


RULES: dict[str, Callable[[Vectors, Vectors], Vectors]] = {
    "median": lambda x, _: np.median(x, axis=0),
    "trimmed_mean": lambda x, _: trimmed_mean(x),
    "krum": lambda x, _: krum(x),
    "multi_krum": lambda x, _: multi_krum(x),
    "bulyan": lambda x, _: bulyan(x),
    "geometric_median": lambda x, _: geometric_median(x),
    "centered_clipping": centered_clipping,
}


@pytest.mark.parametrize("before", ["none", "nearest_neighbour_mixing", "bucketing"])
@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_is_its_papers_formula(name: str, before: str, updates: list[FloatArray], received: FloatArray) -> None:
    x, center = np.array(updates, np.float64), received.astype(np.float64)
    rows = {"none": lambda: x, "nearest_neighbour_mixing": lambda: mixed(x), "bucketing": lambda: bucketed(x)}[before]()
    if before == "bucketing" and name == "bulyan":  # seven buckets are too few for two attackers
        with pytest.raises(BadInput, match="needs at least 21 updates in a round, here are 13"):
            combined(name, updates, received, attackers=ATTACKERS, pre_aggregation=before)
        return
    found = combined(name, updates, received, attackers=ATTACKERS, pre_aggregation=before)
    assert found == pytest.approx(RULES[name](rows, center), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median"])
def test_liars_do_not_move_the_result_far(name: str, updates: list[FloatArray], received: FloatArray) -> None:
    calm = combined(name, updates[1:-1], received, attackers=ATTACKERS)
    moved = combined(name, updates, received, attackers=ATTACKERS)
    assert np.linalg.norm(moved - calm) < 0.4 < np.linalg.norm(np.mean(updates, axis=0) - calm)


def test_multi_krum_averages_as_many_as_are_chosen(updates: list[FloatArray], received: FloatArray) -> None:
    x = np.array(updates, np.float64)
    best = x[np.argsort(scores(x))[:3]].mean(axis=0)
    assert combined("multi_krum", updates, received, attackers=ATTACKERS, chosen=3) == pytest.approx(best, rel=1e-12)
    assert combined("multi_krum", updates, received, attackers=ATTACKERS, chosen=1) == pytest.approx(krum(x), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("median", {}, 1),
        ("trimmed_mean", {"attackers": 3}, 7),
        ("krum", {"attackers": 2}, 7),
        ("multi_krum", {"attackers": 1, "chosen": 9}, 10),
        ("bulyan", {"attackers": 2}, 11),
        ("krum", {"attackers": 2, "pre_aggregation": "bucketing", "bucket_size": 3}, 19),
        ("krum", {"attackers": 2, "pre_aggregation": "nearest_neighbour_mixing"}, 7),
    ],
)
def test_a_cohort_that_is_too_small_for_the_rule_is_refused(name: str, options: dict[str, Any], least: int) -> None:
    def settings(clients: int) -> TaskSettings:
        return TaskSettings(strategy=name, strategy_options=options, num_clients=clients, fraction_train=1.0)

    strategy = make_strategy(settings(least))
    assert strategy.least_updates == least
    check_cohort(strategy, settings(least))
    if least > 1:
        with pytest.raises(BadInput, match=f"{name} needs the updates of at least {least} clients .* has {least - 1}"):
            check_cohort(strategy, settings(least - 1))


def test_the_rule_of_another_strategy_brings_its_demand_along() -> None:
    settings = TaskSettings(strategy="fedprox", aggregation="krum", aggregation_options={"attackers": 4})
    assert make_strategy(settings).least_updates == 11
