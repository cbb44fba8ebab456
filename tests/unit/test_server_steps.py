"""Server steps and clients' terms of strategies against their papers' algorithms, written down directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fedsim.data import DataSet, Examples
from fedsim.learning.aggregate import round_context
from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.networks import build_model, initial_vector, load_vector, vector_of
from fedsim.learning.partitions import make_partition
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import StepContext, make_strategy
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.update import EFFECTIVE_STEPS, Update

pytestmark = pytest.mark.usefixtures("deterministic_torch")
Vector = NDArray[np.float64]
LOGISTIC = ModelSpec(name="logistic", feature_shape=(4,), num_classes=2)
CLIENTS, RATE, BATCH = 3, 0.1, 7


# ---------------------------------------------------------------- Reddi et al. 2021

ETA, BETA1, BETA2, TAU = 0.3, 0.8, 0.95, 1e-2


def adagrad(v: Vector, change: Vector) -> Vector:
    return v + change**2


def adam(v: Vector, change: Vector) -> Vector:
    return BETA2 * v + (1 - BETA2) * change**2


def yogi(v: Vector, change: Vector) -> Vector:
    return v - (1 - BETA2) * change**2 * np.sign(v - change**2)


@pytest.mark.parametrize(("name", "second"), [("fedadagrad", adagrad), ("fedadam", adam), ("fedyogi", yogi)])
def test_an_adaptive_step_is_algorithm_2(name: str, second: Callable[[Vector, Vector], Vector]) -> None:
    options = {"learning_rate": ETA, "beta1": BETA1, "tau": TAU} | ({} if name == "fedadagrad" else {"beta2": BETA2})
    strategy = make_strategy(TaskSettings(strategy=name, strategy_options=options))
    rng = np.random.default_rng(0)
    x = found = rng.normal(size=50)
    m, v, state = np.zeros(50), np.full(50, TAU**2), {key: np.zeros(50) for key in strategy.server_state}
    for number in range(1, 6):
        mean = found + rng.normal(size=50) * 10.0 ** rng.integers(-4, 1, size=50)
        change = mean - found
        m = BETA1 * m + (1 - BETA1) * change
        v = second(v, change)
        x = x + ETA * m / (np.sqrt(v) + TAU)
        found, state = strategy.step(found, mean, state, StepContext(number, 5, 10))
        assert found == pytest.approx(x, rel=1e-12, abs=1e-12)


# ---------------------------------------------------------------- clients that train


def data() -> DataSet:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 4)).astype(np.float32)
    return DataSet(Examples(features, (features[:, 0] > 0).astype(np.int64)), None, 2)


def settings_for(**chosen: Any) -> TaskSettings:
    """Clients with different numbers of examples, so that they take different numbers of steps."""
    return TaskSettings(
        model="logistic",
        partition="dirichlet",
        partition_options={"alpha": 0.5},
        min_partition_size=5,
        num_clients=CLIENTS,
        fraction_train=0.67,  # two of three
        local_epochs=2,
        local_batch_size=BATCH,
        local_learning_rate=RATE,
        num_rounds=4,
        **chosen,
    )


def trainer_of(settings: TaskSettings) -> ClientTrainer:
    own = ClientData(settings, data().train, make_partition(settings, data().train.labels))
    return SequentialEngine().start(own, LOGISTIC, Components.of(settings), "cpu")


def descend(
    trainer: Any,
    number: int,
    client: int,
    start: Vector,
    extra: Callable[[Vector], Vector] | None = None,
    momentum: float = 0.0,
) -> tuple[Vector, int]:
    """SGD of one client with `extra` added to each gradient; returns where it ends, and the steps."""
    model = build_model(LOGISTIC)
    load_vector(model, start.astype(np.float32))
    features, labels = (torch.from_numpy(array) for array in trainer.data.examples(client))
    y, steps, velocity = start, 0, np.zeros_like(start)
    for order in torch.from_numpy(trainer.data.batch_order(number, client)):
        for batch in order.split(BATCH):
            loss = nn.functional.cross_entropy(model(features[batch]), labels[batch])
            parts = torch.autograd.grad(loss, list(model.parameters()))
            gradient = torch.cat([part.reshape(-1) for part in parts]).numpy().astype(np.float64)
            velocity = momentum * velocity + gradient + (0.0 if extra is None else extra(y))
            y = vector_of(model) - RATE * velocity
            load_vector(model, y.astype(np.float32))
            steps += 1
    return y, steps


def cohort_of(settings: TaskSettings, number: int) -> Sequence[int]:
    drawn: Sequence[int] = settings.plugin("sampler").draw(settings.seed, number, CLIENTS, settings.cohort_size)
    return drawn


@pytest.mark.parametrize(("chunk_clients", "momentum"), [(1, 0.0), (2, 0.0), (2, 0.6)])
def test_fednova_is_equation_6(chunk_clients: int, momentum: float) -> None:
    settings = settings_for(strategy="fednova", optimizer_options={"momentum": momentum})
    result = simulate(settings, data(), chunk_clients=chunk_clients)
    trainer = trainer_of(settings)
    sizes = [trainer.data.partition.num_examples(client) for client in range(CLIENTS)]  # type: ignore[attr-defined]
    x = initial_vector(LOGISTIC, settings.seed).astype(np.float64)
    taken = set()
    for number in range(1, 5):
        cohort = cohort_of(settings, number)
        total = sum(sizes[client] for client in cohort)
        effective, direction = 0.0, np.zeros_like(x)
        for client in cohort:
            y, steps = descend(trainer, number, client, x, momentum=momentum)
            taken.add(steps)
            # ‖a‖: the gradient of step k is in the momentum of all steps from k on.
            tau = sum(momentum**later for k in range(steps) for later in range(steps - k))
            p = sizes[client] / total
            effective += p * tau
            direction += p * (x - y) / tau
        x = x - effective * direction
    assert len(taken) > 1, "clients take different numbers of steps"
    assert np.allclose(result.vector, x, atol=1e-5)


def test_steps_that_cannot_be_true_are_bounded() -> None:
    settings = settings_for(strategy="fednova")  # 2 epochs in batches of 7
    update = Update(base_round=1, num_examples=15, metrics={EFFECTIVE_STEPS: 1e9})
    assert round_context(settings, 1, [update]).metrics[EFFECTIVE_STEPS] == 6
    honest = update.model_copy(update={"metrics": {EFFECTIVE_STEPS: 5.0}})
    assert round_context(settings, 1, [honest]).metrics[EFFECTIVE_STEPS] == 5


def test_feddyn_is_algorithm_1() -> None:
    alpha = 0.3
    settings = settings_for(strategy="feddyn", strategy_options={"alpha": alpha})
    result = simulate(settings, data())
    trainer = trainer_of(settings)
    x = initial_vector(LOGISTIC, settings.seed).astype(np.float64)
    h, last = np.zeros_like(x), {client: np.zeros_like(x) for client in range(CLIENTS)}
    for number in range(1, 5):
        cohort, trained = cohort_of(settings, number), []
        for client in cohort:
            y, _ = descend(trainer, number, client, x, lambda w, k=client, x=x: alpha * (w - x) - last[k])
            last[client] = last[client] - alpha * (y - x)
            trained.append(y)
        h = h - alpha / CLIENTS * np.sum([y - x for y in trained], axis=0)
        x = np.mean(trained, axis=0) - h / alpha
    assert np.allclose(result.vector, x, atol=1e-5)
    assert np.allclose(result.state["drift"], h, atol=1e-5)
    assert all(np.allclose(result.client_states[client]["gradient"], last[client], atol=1e-5) for client in last)
