"""Schedules of the learning rate and `max_steps`: their formulas, and what clients do with them."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fedsim.data import DataSet, Examples
from fedsim.errors import BadInput
from fedsim.learning.aggregate import round_context
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.networks import build_model, initial_vector, load_vector, vector_of
from fedsim.learning.partitions import make_partition
from fedsim.learning.randomness import generator
from fedsim.learning.schedules import Schedule, largest_learning_rate, learning_rate, make_schedule
from fedsim.learning.simulate import simulate
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.update import EFFECTIVE_STEPS, Update

pytestmark = pytest.mark.usefixtures("deterministic_torch")
Vector = NDArray[np.float64]
LOGISTIC = ModelSpec(name="logistic", feature_shape=(4,), num_classes=2)
CLIENTS, RATE, BATCH, ROUNDS = 3, 0.1, 7, 4


def rates(schedule: str, num_rounds: int, **options: float) -> list[float]:
    settings = TaskSettings(
        schedule=schedule, schedule_options=options, num_rounds=num_rounds, local_learning_rate=RATE
    )
    made = make_schedule(settings)
    return [learning_rate(made, settings, number) for number in range(1, num_rounds + 1)]


def test_constant_is_the_learning_rate_itself() -> None:
    assert rates("constant", 5) == [RATE] * 5


def test_step_decay_keeps_a_share_every_few_rounds() -> None:
    expected = [RATE * share for share in (1, 1, 1, 0.2, 0.2, 0.2, 0.05, 0.05)]
    assert rates("step", 8, decay=0.2, every=3, least_share=0.05) == pytest.approx(expected, rel=1e-12)


def test_exponential_decay_keeps_a_share_after_each_round_down_to_the_least() -> None:
    expected = [RATE * max(0.9**number, 0.5) for number in range(12)]
    assert rates("exponential", 12, decay=0.9, least_share=0.5) == pytest.approx(expected, rel=1e-12)
    assert expected[-1] == RATE * 0.5


def test_cosine_warms_up_and_falls_to_the_least() -> None:
    expected = [RATE / 4, RATE * 2 / 4, RATE * 3 / 4]
    low = RATE * 0.1
    expected += [low + (RATE - low) * (1 + cos(pi * s / 7)) / 2 for s in range(7)]
    found = rates("cosine", 10, warmup_rounds=3, least_share=0.1)
    assert found == pytest.approx(expected, rel=1e-12)
    assert max(found) == found[3] == RATE
    assert rates("cosine", 2, warmup_rounds=5) == pytest.approx([RATE / 6, RATE * 2 / 6])


class RisesAndFalls(Schedule):
    """Above the task's learning rate in the middle."""

    def factor(self, round_number: int, num_rounds: int) -> float:  # noqa: ARG002
        return {2: 3.0, 3: 0.0}.get(round_number, 1.0)


def test_a_rate_that_is_not_above_zero_is_refused() -> None:
    settings = TaskSettings(num_rounds=3, local_learning_rate=RATE)
    assert learning_rate(RisesAndFalls(), settings, 2) == RATE * 3.0
    with pytest.raises(BadInput, match=r"multiplies the learning rate by 0.0 in round 3; it must be a finite number"):
        learning_rate(RisesAndFalls(), settings, 3)


def test_the_largest_rate_is_that_of_the_best_round() -> None:
    cosine = TaskSettings(schedule="cosine", schedule_options={"warmup_rounds": 9}, num_rounds=5)
    assert largest_learning_rate(cosine) == pytest.approx(cosine.local_learning_rate * 0.5)
    assert largest_learning_rate(TaskSettings(schedule="exponential")) == TaskSettings().local_learning_rate


# ---------------------------------------------------------------- clients that train


def data() -> DataSet:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 4)).astype(np.float32)
    return DataSet(Examples(features, (features[:, 0] > 0).astype(np.int64)), None, 2)


def settings_for(**chosen: Any) -> TaskSettings:
    """Clients of different sizes, of which the small ones end before `max_steps` and the large ones do not."""
    given = {"model": "logistic", "partition": "dirichlet", "partition_options": {"alpha": 0.5}, "num_clients": CLIENTS}
    given |= {"min_partition_size": 5, "fraction_train": 1.0, "local_epochs": 2, "local_batch_size": BATCH}
    given |= {"local_learning_rate": RATE, "num_rounds": ROUNDS, "max_steps": 7}
    given |= {"schedule": "step", "schedule_options": {"decay": 0.5, "every": 2}}
    return TaskSettings.model_validate({**given, **chosen})


def descend(
    settings: TaskSettings, number: int, client: int, start: Vector, extra: Any = None
) -> tuple[Vector, int, float]:
    """Plain SGD of one client, cut after `max_steps`; returns where it ends, its steps and its learning rate."""
    train = data().train
    indices = make_partition(settings, train.labels).indices(client)
    features, labels = torch.from_numpy(train.features[indices]), torch.from_numpy(train.labels[indices])
    rate = RATE * (0.5 if number > 2 else 1.0)
    rng = generator(settings.seed, "batches", number, client)
    epochs = [torch.from_numpy(rng.permutation(len(indices))) for _ in range(2)]
    batches = [batch for epoch in epochs for batch in epoch.split(BATCH)][: settings.max_steps or None]
    model, y = build_model(LOGISTIC), start
    for batch in batches:
        load_vector(model, y.astype(np.float32))
        loss = nn.functional.cross_entropy(model(features[batch]), labels[batch])
        gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])
        y = vector_of(model) - rate * (gradient.numpy() + (0.0 if extra is None else extra(y)))
    return y, len(batches), rate


def sizes_of(settings: TaskSettings) -> list[int]:
    partition = make_partition(settings, data().train.labels)
    return [partition.num_examples(client) for client in range(CLIENTS)]


@pytest.mark.parametrize("max_steps", [0, 1, 7])
def test_fedavg_trains_no_more_steps_than_that(max_steps: int) -> None:
    settings = settings_for(max_steps=max_steps)
    sizes = sizes_of(settings)
    x = initial_vector(LOGISTIC, settings.seed).astype(np.float64)
    steps: set[int] = set()
    for number in range(1, ROUNDS + 1):
        trained = [descend(settings, number, client, x) for client in range(CLIENTS)]
        steps.update(count for _, count, _ in trained)
        x = np.average([y for y, _, _ in trained], axis=0, weights=sizes)
    assert max(steps) == max_steps or not max_steps
    assert len(steps) > 1 or max_steps == 1
    assert np.allclose(simulate(settings, data()).vector, x, atol=1e-5)
    assert np.allclose(simulate(settings, data(), engine=BatchedEngine()).vector, x, atol=1e-5)


def test_fednova_normalises_by_the_steps_that_were_taken() -> None:
    settings = settings_for(strategy="fednova")
    shares = np.array(sizes_of(settings)) / sum(sizes_of(settings))
    x = initial_vector(LOGISTIC, settings.seed).astype(np.float64)
    for number in range(1, ROUNDS + 1):
        trained = [descend(settings, number, client, x) for client in range(CLIENTS)]
        effective = sum(p * count for p, (_, count, _) in zip(shares, trained, strict=True))
        x = x - effective * sum(p * (x - y) / count for p, (y, count, _) in zip(shares, trained, strict=True))
    assert np.allclose(simulate(settings, data()).vector, x, atol=1e-5)


def test_steps_beyond_max_steps_are_not_believed() -> None:
    update = Update(base_round=1, num_examples=70, metrics={EFFECTIVE_STEPS: 1e9})
    assert round_context(settings_for(strategy="fednova"), 1, [update]).metrics[EFFECTIVE_STEPS] == 7
    assert round_context(settings_for(strategy="fednova", max_steps=0), 1, [update]).metrics[EFFECTIVE_STEPS] == 20


def test_scaffold_divides_by_the_steps_and_the_rate_of_the_round() -> None:
    settings = settings_for(strategy="scaffold")
    x = initial_vector(LOGISTIC, settings.seed).astype(np.float64)
    c, own = np.zeros_like(x), [np.zeros_like(x) for _ in range(CLIENTS)]
    for number in range(1, ROUNDS + 1):
        moved, changed = [], []
        for client in range(CLIENTS):
            y, steps, rate = descend(settings, number, client, x, lambda _, k=client, c=c: c - own[k])
            new = own[client] - c + (x - y) / (steps * rate)
            moved.append(y - x)
            changed.append(new - own[client])
            own[client] = new
        x, c = x + np.mean(moved, axis=0), c + np.mean(changed, axis=0)
    result = simulate(settings, data())
    assert np.allclose(result.vector, x, atol=1e-5)
    assert np.allclose(result.state["control"], c, atol=1e-4)


def test_feddyn_works_with_fewer_steps() -> None:
    alpha = 0.3
    settings = settings_for(strategy="feddyn", strategy_options={"alpha": alpha})
    x = initial_vector(LOGISTIC, settings.seed).astype(np.float64)
    h, last = np.zeros_like(x), [np.zeros_like(x) for _ in range(CLIENTS)]
    for number in range(1, ROUNDS + 1):
        trained = []
        for client in range(CLIENTS):
            y, _, _ = descend(settings, number, client, x, lambda w, k=client, x=x: alpha * (w - x) - last[k])
            last[client] = last[client] - alpha * (y - x)
            trained.append(y)
        h = h - alpha * np.mean([y - x for y in trained], axis=0)
        x = np.mean(trained, axis=0) - h / alpha
    assert np.allclose(simulate(settings, data()).vector, x, atol=1e-5)


def test_a_constant_rate_and_no_limit_of_steps_are_the_task_as_it_was() -> None:
    plain = {"max_steps": 0, "schedule": "constant", "schedule_options": {}}
    digests = {
        simulate(settings_for(**{**plain, **chosen}), data()).digest
        for chosen in ({}, {"max_steps": 1000}, {"schedule": "cosine", "schedule_options": {"least_share": 1.0}})
    }
    assert len(digests) == 1
    assert simulate(settings_for(**{**plain, "max_steps": 7}), data()).digest not in digests
