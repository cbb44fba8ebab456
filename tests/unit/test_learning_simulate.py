"""Whole tasks in one process: reproducible, resumable, and right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.errors import BadInput
from fedsim.learning.aggregate import aggregate, model_digest
from fedsim.learning.engines import ClientTrainer
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import DataSet, Examples, FloatArray
from fedsim.learning.node_evaluation import evaluate_with_intervals
from fedsim.learning.objectives.classification import Classification
from fedsim.learning.optimizers import Optimizer, Step
from fedsim.learning.samplers import Sampler, make_sampler
from fedsim.learning.simulate import RoundResult, SimulationResult, simulate
from fedsim.learning.strategies import Block, Passes, StepContext, Strategy, Uplink
from fedsim.learning.strategies.fedprox import FedProx
from fedsim.settings import TaskSettings

pytestmark = pytest.mark.usefixtures("deterministic_torch")


def _data(seed: int = 0, count: int = 400) -> DataSet:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count + 100, 6)).astype(np.float32)
    labels = (features[:, :2].sum(axis=1) > 0).astype(np.int64)
    return DataSet(Examples(features[:count], labels[:count]), Examples(features[count:], labels[count:]), 2)


def _settings(**chosen: Any) -> TaskSettings:
    given = {
        "model": "mlp",
        "partition": "iid",
        "num_clients": 10,
        "fraction_train": 0.5,
        "local_epochs": 2,
        "local_learning_rate": 0.1,
        "num_rounds": 4,
        "evaluate_every": 2,
    }
    return TaskSettings(**(given | chosen))


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "median"])
def test_the_same_task_gives_the_same_digest_and_learns(strategy: str) -> None:
    told: list[RoundResult] = []
    settings = _settings(strategy=strategy, strategy_options={"momentum": 0.5} if strategy == "fedavgm" else {})
    one = simulate(settings, _data(), chunk_clients=2, on_round=told.append)
    two = simulate(settings, _data(), chunk_clients=2)
    assert one.digest == two.digest
    assert told == one.rounds
    assert [result.round for result in told] == [0, 1, 2, 3, 4]
    assert [bool(result.metrics) for result in told] == [True, False, True, False, True]
    assert told[-1].metrics["accuracy"] > max(0.8, told[0].metrics["accuracy"])
    assert told[-1].num_examples == 5 * 40
    assert simulate(_settings(strategy=strategy, seed=1), _data()).digest != one.digest


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm"])
def test_a_task_that_is_resumed_ends_with_the_same_bytes(strategy: str) -> None:
    whole = simulate(_settings(strategy=strategy), _data())
    half = simulate(_settings(strategy=strategy, num_rounds=2), _data())
    rest = simulate(_settings(strategy=strategy), _data(), resume=half)
    assert rest.vector.tobytes() == whole.vector.tobytes()
    assert rest.rounds == whole.rounds


def test_a_run_that_lost_clients_is_replayed_from_their_record() -> None:
    settings = _settings(strategy="median")
    whole = simulate(settings, _data(), chunk_clients=2)
    cohort = make_sampler(settings).draw(settings.seed, 2, settings.num_clients, settings.cohort_size)
    lost = simulate(settings, _data(), chunk_clients=2, missing={2: cohort[:1]})
    assert [one.digest == two.digest for one, two in zip(whole.rounds, lost.rounds, strict=True)] == [
        *(True, True),
        *(False, False, False),
    ]
    assert lost.rounds[2].num_examples == 4 * 40
    assert simulate(settings, _data(), chunk_clients=5, missing={"2": list(cohort[:1])}).digest == lost.digest
    absent = [client for client in range(10) if client not in cohort]
    assert simulate(settings, _data(), missing={2: absent}).digest == whole.digest, "they were not chosen"


def test_a_record_of_missing_clients_that_cannot_be_replayed_is_refused() -> None:
    settings = _settings()
    cohort = make_sampler(settings).draw(settings.seed, 2, settings.num_clients, settings.cohort_size)
    with pytest.raises(BadInput, match="sends one sum"):
        simulate(settings, _data(), chunk_clients=5, missing={2: cohort[:1]})
    with pytest.raises(BadInput, match="round 2 lacks all"):
        simulate(settings, _data(), chunk_clients=5, missing={2: cohort})
    with pytest.raises(BadInput, match="what state the missing clients kept"):
        simulate(_settings(strategy="scaffold"), _data(), missing={2: cohort[:1]})


def test_without_a_pull_fedprox_is_fedavg() -> None:
    assert (
        simulate(_settings(strategy="fedprox", strategy_options={"mu": 0}), _data()).digest
        == simulate(_settings(), _data(), engine=SequentialEngine).digest
    )


def test_cutting_otherwise_changes_only_the_rounding() -> None:
    whole = simulate(_settings(), _data())
    halves = simulate(_settings(), _data(), placement=[(0, 5), (5, 5)], chunk_clients=2)
    assert np.allclose(whole.vector, halves.vector, atol=1e-5)


def test_what_each_client_sends_to_a_median_does_not_depend_on_the_chunks() -> None:
    settings = _settings(strategy="median")
    parts = simulate(settings, _data(), placement=[(0, 3), (3, 7)], chunk_clients=1)
    assert parts.digest == simulate(settings, _data()).digest


def _banks(**chosen: Any) -> SimulationResult:
    banks = [_data(seed, count) for seed, count in ((0, 100), (1, 200), (2, 300))]
    return simulate(_settings(partition="local", fraction_train=1.0, **chosen), banks)


def test_each_bank_trains_on_its_own_data() -> None:
    result = _banks(num_clients=3)
    assert result.rounds[-1].num_examples == 600
    assert result.rounds[-1].metrics["accuracy"] > 0.8


def test_banks_and_clients_must_be_equally_many() -> None:
    with pytest.raises(BadInput, match="set num_clients to 3"):
        _banks(num_clients=4)


def test_a_model_that_explodes_ends_the_task_with_its_round() -> None:
    data = _data()
    wild = DataSet(Examples(data.train.features * np.float32(1e18), data.train.labels), data.test, 2)
    with pytest.raises(Diverged, match="diverged in round 1"):
        simulate(_settings(local_learning_rate=100.0, local_epochs=50), wild)


class FirstClients(Sampler):
    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:  # noqa: ARG002
        return tuple(range(cohort_size))


class Signs(Optimizer):
    def start(self, parameters: Sequence[Tensor], learning_rate: float) -> Step:
        def step(gradients: Sequence[Tensor]) -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient.sign(), alpha=learning_rate)

        return step


class NearestToMean(Strategy):
    """Takes the update that is nearest to the mean: distances come from a pass over all blocks."""

    uplink = Uplink.EACH_CLIENT

    def prepare(self, weights: Sequence[float], context: StepContext) -> Passes:  # noqa: ARG002
        distances = yield self.distances
        assert len(distances) == len(weights)
        return int(distances.argmin())

    @staticmethod
    def distances(updates: Sequence[FloatArray], received: Block) -> Block:  # noqa: ARG004
        stacked = np.stack(updates).astype(np.float64)
        return np.square(stacked - stacked.mean(axis=0)).sum(axis=1)

    def combine(
        self,
        updates: Sequence[FloatArray],
        weights: Sequence[float],  # noqa: ARG002
        received: Block,  # noqa: ARG002
        prepared: int,
    ) -> Block:
        return updates[prepared].astype(np.float64)


def test_objects_take_the_place_of_what_the_settings_name_without_an_installed_package() -> None:
    prox = simulate(_settings(strategy="fedprox", strategy_options={"mu": 0.3}), _data())
    given = simulate(_settings(), _data(), strategy=FedProx(FedProx.Options(mu=0.3)))
    assert given.digest == prox.digest
    assert simulate(_settings(), _data(), strategy=FedProx).digest != prox.digest, "a class has its default options"

    plain = simulate(_settings(), _data()).digest
    for other in ({"sampler": FirstClients}, {"optimizer": Signs()}, {"strategy": NearestToMean()}):
        assert simulate(_settings(), _data(), **other).digest != plain

    def linear(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Linear(feature_shape[0], num_classes)

    assert len(simulate(_settings(), _data(), model=linear).vector) == 6 * 2 + 2


def test_an_engine_of_ones_own_trains_and_a_faulty_one_is_seen() -> None:
    made = []

    class Counting(SequentialEngine):
        def start(self, *args: Any) -> ClientTrainer:
            made.append(self)
            return super().start(*args)

    one_by_one = simulate(_settings(), _data(), engine=SequentialEngine)
    assert simulate(_settings(), _data(), engine=Counting).digest == one_by_one.digest
    assert len(made) == 1


def test_a_pass_over_the_blocks_chooses_the_update_that_whole_vectors_would_choose() -> None:
    rng = np.random.default_rng(3)
    updates = [rng.normal(size=5000).astype(np.float32) for _ in range(7)]
    stacked = np.stack(updates).astype(np.float64)
    nearest = int(np.square(stacked - stacked.mean(axis=0)).sum(axis=1).argmin())
    for block in (1000, 5000):
        out = np.empty(5000, np.float32)
        assert aggregate(NearestToMean(), updates[0], updates, [1.0] * 7, {}, out, {}, block=block)
        assert out.tobytes() == updates[nearest].tobytes()


@pytest.mark.parametrize(("rule", "step"), [("median", ""), ("", "fedavgm"), ("median", "fedavgm")])
def test_the_parts_of_strategies_combine_freely(rule: str, step: str) -> None:
    settings = _settings(strategy="fedprox", aggregation=rule, server_step=step)
    one = simulate(settings, _data(), chunk_clients=2)
    alone = [simulate(_settings(strategy=name), _data(), chunk_clients=2) for name in ("fedprox", "median", "fedavgm")]
    assert one.digest not in {result.digest for result in alone}
    assert sorted(one.state) == (["momentum"] if step else [])


def test_a_task_that_a_condition_ends_has_the_rounds_of_the_whole_one_up_to_there() -> None:
    whole = simulate(_settings(evaluate_every=1), _data())
    accuracy = [result.metrics["accuracy"] for result in whole.rounds]
    most = max(value for value in accuracy[1:4] if value is not None)
    last = accuracy.index(most, 1)
    short = simulate(_settings(evaluate_every=1, stop_when=f"accuracy >= {most!r}"), _data())
    assert short.rounds == whole.rounds[: last + 1]
    assert short.ended == f"accuracy is {most:.6g}, which meets `accuracy >= {most!r}`"
    assert whole.ended == ""


def test_the_best_model_is_that_of_the_first_round_with_the_best_value() -> None:
    result = simulate(_settings(evaluate_every=1, keep_best="loss"), _data())
    losses = {tested.round: tested.metrics["loss"] for tested in result.rounds[1:]}
    assert result.best is not None
    number, vector = result.best
    assert number == min(losses, key=lambda tested: losses[tested] or 0.0)
    assert model_digest(vector) == result.rounds[number].digest


def test_what_was_before_a_continuation_is_the_best_but_does_not_end_it() -> None:
    settings = _settings(evaluate_every=1, keep_best="loss", stop_when="patience 2 loss")
    half = simulate(settings.model_copy(update={"num_rounds": 2}), _data())
    full = simulate(settings, _data(), resume=half)
    assert full.best is not None
    assert full.rounds[:3] == half.rounds
    assert len(full.rounds) > 3


def _two_hospitals() -> list[DataSet]:
    """Two nodes with data of their own: one holds examples out, the other has a test set."""
    first, second = _data(1), _data(2, 300)
    held_out = Examples(second.train.features[:80], second.train.labels[:80])
    return [first, replace(second, test=None, held_out=held_out)]


def test_models_are_tested_where_the_data_is_and_the_mean_is_the_result() -> None:
    settings = _settings(partition="local", num_clients=2, fraction_train=1, evaluation="nodes")
    result = simulate(settings, _two_hospitals())
    last = result.rounds[-1].node_metrics
    assert {node: found["num_examples"] for node, found in last["nodes"].items()} == {"0": 100, "1": 80}
    of_nodes = [last["nodes"][node]["metrics"]["accuracy"] for node in ("0", "1")]
    for one in of_nodes:
        assert one.low <= one.value <= one.high
    losses = [last["nodes"][node]["metrics"]["loss"] for node in ("0", "1")]
    assert all(one.low < one.value < one.high for one in losses)
    mean = (100 * of_nodes[0].value + 80 * of_nodes[1].value) / 180
    assert result.rounds[-1].metrics["accuracy"] == pytest.approx(mean)
    assert last["worst"]["accuracy"] == min(("0", of_nodes[0].value), ("1", of_nodes[1].value), key=lambda one: one[1])
    assert result.rounds[1].node_metrics == {}
    again = simulate(settings, _two_hospitals())
    assert again.rounds == result.rounds
    assert simulate(settings.model_copy(update={"evaluation": "server"}), _two_hospitals()).digest == result.digest


def test_intervals_of_a_metric_cover_what_a_normal_approximation_says() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(2, size=1000)
    outputs = np.where(rng.random(1000) < 0.8, labels, 1 - labels)
    features = np.eye(2, dtype=np.float32)[outputs]
    found = evaluate_with_intervals(_Given(), Examples(features, labels), Classification(), (1, 2))["accuracy"]
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / 1000)
    assert found.low == pytest.approx(found.value - half, abs=0.006)
    assert found.high == pytest.approx(found.value + half, abs=0.006)


class _Given(nn.Module):
    """A model whose outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs
