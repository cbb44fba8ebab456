"""The aggregation algorithms against straightforward numpy, and aggregation by blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.aggregate import aggregate, initial_state, model_digest
from fedsim.learning.strategies import ClientRound, StepContext, make_strategy
from fedsim.settings import TaskSettings
from fedsim.update import EFFECTIVE_STEPS

SIZE = 1013
NAMES = plugins.names(plugins.STRATEGIES)


def _vectors(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=SIZE).astype(np.float32) for _ in range(count)]


def _run(
    updates: list[np.ndarray], weights: list[float], *, rounds: int = 1, block: int | None = None, **chosen: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    strategy = make_strategy(TaskSettings(**chosen))
    context = StepContext(1, len(updates), len(updates), metrics={EFFECTIVE_STEPS: 5.0})
    vector, state = _vectors(1, seed=9)[0], initial_state(strategy, SIZE)
    for _ in range(rounds):
        out, state_out = np.empty_like(vector), initial_state(strategy, SIZE)
        arrays = dict.fromkeys(strategy.uplink_arrays[1:], updates)
        assert aggregate(
            strategy, vector, updates, weights, state, out, state_out, arrays=arrays, block=block, context=context
        )
        vector, state = out, state_out
    return vector, state


def test_fedavg_is_the_weighted_mean() -> None:
    updates = _vectors(7)
    weights = [3.0, 600.0, 1.0, 2.0, 5.0, 8.0, 13.0]
    expected = np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)
    assert np.allclose(_run(updates, weights)[0], expected, rtol=1e-6)


def test_a_weight_is_the_examples_or_the_same_for_each_client() -> None:
    assert make_strategy(TaskSettings()).weight(600, 3) == 600
    assert make_strategy(TaskSettings(strategy_options={"weighting": "uniform"})).weight(600, 3) == 3


def test_fedavgm_without_momentum_and_with_step_1_is_fedavg() -> None:
    updates, weights = _vectors(3), [1.0, 2.0, 3.0]
    plain, _ = _run(updates, weights)
    same, _ = _run(updates, weights, strategy="fedavgm", strategy_options={"momentum": 0.0, "learning_rate": 1.0})
    assert np.allclose(plain, same, rtol=1e-6, atol=1e-6)


def test_fedavgm_follows_its_recursion() -> None:
    updates, weights = _vectors(3), [1.0, 2.0, 3.0]
    vector, state = _run(
        updates, weights, rounds=4, strategy="fedavgm", strategy_options={"momentum": 0.7, "learning_rate": 0.5}
    )
    mean = np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)
    w, v = _vectors(1, seed=9)[0].astype(np.float64), np.zeros(SIZE)
    for _ in range(4):
        v = 0.7 * v + (w - mean)
        w = w - 0.5 * v
    assert np.allclose(vector, w, atol=1e-5)
    assert np.allclose(state["momentum"], v, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_median_is_the_coordinate_wise_median_and_ignores_weights(count: int) -> None:
    updates = _vectors(count)
    vector, _ = _run(updates, [float(number + 1) for number in range(count)], strategy="median")
    assert np.allclose(vector, np.median(np.stack(updates).astype(np.float64), axis=0), rtol=1e-6)


def test_median_withstands_a_liar() -> None:
    updates = [*_vectors(4), np.full(SIZE, 1e30, np.float32)]
    assert np.abs(_run(updates, [1.0] * 5, strategy="median")[0]).max() < 10


@given(name=st.sampled_from(NAMES), block=st.integers(1, 2 * SIZE), count=st.integers(1, 6))
def test_the_block_size_never_changes_a_byte(name: str, block: int, count: int) -> None:
    count += make_strategy(TaskSettings(strategy=name)).least_updates
    updates = _vectors(count)
    weights = [float(number + 1) / 3 for number in range(count)]
    whole, whole_state = _run(updates, weights, strategy=name, block=SIZE, rounds=2)
    parts, parts_state = _run(updates, weights, strategy=name, block=block, rounds=2)
    assert whole.tobytes() == parts.tobytes()
    assert all(whole_state[key].tobytes() == parts_state[key].tobytes() for key in whole_state)


def test_mapped_files_give_the_same_bytes(tmp_path: Path) -> None:
    updates = _vectors(3)
    for number, update in enumerate(updates):
        np.save(tmp_path / f"{number}.npy", update)
    mapped = [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(3)]
    assert _run(updates, [1.0, 2.0, 3.0])[0].tobytes() == _run(mapped, [1.0, 2.0, 3.0])[0].tobytes()
    assert model_digest(updates[0]) == model_digest(mapped[0])
    assert model_digest(updates[0]) != model_digest(updates[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_result_that_is_not_finite_is_reported(bad: float) -> None:
    strategy = make_strategy(TaskSettings(strategy="fedavgm"))
    updates = _vectors(2)
    updates[1][500] = bad
    vector = np.full(SIZE, -3e38, np.float32)
    out, state_out = np.empty_like(vector), initial_state(strategy, SIZE)
    assert not aggregate(strategy, vector, updates, [1, 1], initial_state(strategy, SIZE), out, state_out, block=100)


def test_updates_of_another_model_and_without_weight_are_refused() -> None:
    strategy = make_strategy(TaskSettings())
    vector, out = _vectors(1)[0], np.empty(SIZE, np.float32)
    with pytest.raises(BadInput, match="update 1 has the shape"):
        aggregate(strategy, vector, [vector, vector[1:]], [1, 1], {}, out, {})
    with pytest.raises(BadInput, match="cannot be combined"):
        aggregate(strategy, vector, [vector, vector], [0, 0], {}, out, {})
    with pytest.raises(BadInput, match="cannot be combined"):
        aggregate(strategy, vector, [], [], {}, out, {})


def test_fedprox_adds_the_gradient_of_its_proximal_term() -> None:
    strategy = make_strategy(TaskSettings(strategy="fedprox", strategy_options={"mu": 0.3}))
    parameter, anchor = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.5, 4.0])
    (expected,) = torch.autograd.grad(parameter.square().sum() + 0.15 * (parameter - anchor).square().sum(), parameter)
    (gradient,) = torch.autograd.grad(parameter.square().sum(), parameter)
    with torch.no_grad():
        strategy.adjust_gradients([gradient], [parameter], [anchor], ClientRound({}, {}, 1, 0.1))
    assert torch.allclose(gradient, expected)
