"""The engine `batched` trains what the engine `sequential` trains, in another order of rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.learning.chunk import train_chunk
from fedsim.learning.components import Components
from fedsim.learning.dense import DenseTrainer, dense_layers
from fedsim.learning.engine import SequentialTrainer
from fedsim.learning.engines import ClientData, ClientTrainer, Engine, MeanTrainer
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import Examples, FloatArray
from fedsim.learning.networks import initial_vector
from fedsim.learning.partitions import make_partition
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import Pipeline
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS, TRAIN_LOSS, UPDATE_NORM, Update

pytestmark = pytest.mark.usefixtures("deterministic_torch")

CLASSES = 4


def settings_of(**chosen: Any) -> TaskSettings:
    given = {"model": "mlp", "partition": "dirichlet", "num_clients": 7, "local_epochs": 3, "local_learning_rate": 0.02}
    return TaskSettings.model_validate({**given, **chosen})


def examples(shape: tuple[int, ...]) -> Examples:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, CLASSES, 230)
    centres = rng.normal(size=(CLASSES, *shape))
    return Examples((centres[labels] + rng.normal(size=(230, *shape))).astype(np.float32), labels)


def trainer_of(engine: Engine, settings: TaskSettings, shape: tuple[int, ...]) -> ClientTrainer:
    train = examples(shape)
    data = ClientData(settings, train, make_partition(settings, train.labels))
    return engine.start(data, ModelSpec.of(settings, shape, CLASSES), Components.of(settings), "cpu")


def start_of(settings: TaskSettings, shape: tuple[int, ...]) -> FloatArray:
    return initial_vector(ModelSpec.of(settings, shape, CLASSES), settings.seed)


def chunk_of(engine: Engine, settings: TaskSettings, shape: tuple[int, ...], least_shown: int | None = None) -> Update:
    clients = range(settings.num_clients)
    trainer, strategy = trainer_of(engine, settings, shape), make_strategy(settings)
    start = start_of(settings, shape)
    (mean,) = train_chunk(trainer, strategy, 2, clients, 5, start, Pipeline(), least_shown=least_shown)
    return mean


def difference(one: FloatArray, two: FloatArray) -> float:
    return float(np.abs(one - two).max() / np.abs(one).max())


@pytest.mark.parametrize("shape", [(3,), (8, 8)], ids=["few features", "many features"])
@pytest.mark.parametrize("model", ["logistic", "mlp", "2nn"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_the_mean_of_clients_of_any_size_is_that_of_the_sequential_engine(
    shape: tuple[int, ...], model: str, batch_size: int, weighting: str
) -> None:
    settings = settings_of(model=model, local_batch_size=batch_size, strategy_options={"weighting": weighting})
    expected, mean = (chunk_of(engine, settings, shape) for engine in (SequentialEngine(), BatchedEngine()))
    assert difference(expected.arrays[PARAMETERS], mean.arrays[PARAMETERS]) < 1e-5
    assert mean.metrics[TRAIN_LOSS] == pytest.approx(expected.metrics[TRAIN_LOSS], rel=1e-5)
    assert mean.model_dump(exclude={"metrics"}) == expected.model_dump(exclude={"metrics"})
    again = chunk_of(BatchedEngine(), settings, shape)
    assert mean.arrays[PARAMETERS].tobytes() == again.arrays[PARAMETERS].tobytes()


@pytest.mark.parametrize("batch_size", [3, 1000], ids=["many steps", "one step"])
@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_a_mean_comes_with_the_norms_of_its_clients(model: str, batch_size: int) -> None:
    settings, shape = settings_of(model=model, local_batch_size=batch_size, local_epochs=1), (8, 8)
    expected, mean = (chunk_of(engine, settings, shape, 20) for engine in (SequentialEngine(), BatchedEngine()))
    assert mean.metrics[UPDATE_NORM] == pytest.approx(expected.metrics[UPDATE_NORM], rel=1e-5)
    assert 1 < len(expected.client_figures) < 7, "clients with fewer examples than 20 are not named"
    for one, same in zip(expected.client_figures, mean.client_figures, strict=True):
        assert (same.client, same.num_examples) == (one.client, one.num_examples)
        assert (same.norm, same.loss) == pytest.approx((one.norm, one.loss), rel=1e-5)


def test_a_client_that_does_not_move_has_the_norm_0() -> None:
    settings = settings_of(local_learning_rate=1e-30)
    assert chunk_of(BatchedEngine(), settings, (8, 8)).metrics[UPDATE_NORM] == 0


@pytest.mark.parametrize("max_steps", [1, 4, 1000])
def test_steps_are_limited_and_learning_rates_scheduled_as_in_the_sequential_engine(max_steps: int) -> None:
    schedule = {"schedule": "exponential", "schedule_options": {"decay": 0.5}}
    settings, shape = settings_of(local_batch_size=7, max_steps=max_steps, **schedule), (8, 8)
    trainer = trainer_of(BatchedEngine(), settings, shape)
    assert isinstance(trainer, DenseTrainer)
    assert {trainer.data.num_steps(client) for client in range(7)} != {max_steps} or max_steps < 1000
    expected, mean = (chunk_of(engine, settings, shape) for engine in (SequentialEngine(), BatchedEngine()))
    assert difference(expected.arrays[PARAMETERS], mean.arrays[PARAMETERS]) < 1e-5
    assert mean.metrics[TRAIN_LOSS] == pytest.approx(expected.metrics[TRAIN_LOSS], rel=1e-5)


def test_groups_of_any_size_give_the_same_model() -> None:
    settings, shape = settings_of(), (8, 8)
    expected = chunk_of(SequentialEngine(), settings, shape).arrays[PARAMETERS]
    start = start_of(settings, shape)
    for group_bytes in (1, 60_000, 1 << 30):
        trainer = trainer_of(BatchedEngine(), settings, shape)
        assert isinstance(trainer, DenseTrainer)
        alike = DenseTrainer(trainer.data, trainer.model, trainer.schedule, group_bytes)
        assert isinstance(alike, MeanTrainer)
        mean = alike.train_mean(range(7), 5, start, float)
        assert difference(expected, mean.arrays[PARAMETERS]) < 1e-5


def test_what_it_cannot_batch_is_trained_one_after_another() -> None:
    for chosen in (
        {"strategy": "fedprox"},
        {"strategy": "scaffold"},
        {"model": "cnn", "model_options": {"channels": (2, 2)}},
        {"model_options": {"hidden": (1500, 1500)}},  # a group of 32 MB has no four of it
    ):
        assert type(trainer_of(BatchedEngine(), settings_of(**chosen), (8, 8))) is SequentialTrainer


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
        nn.Sequential(),
    ],
)
def test_other_networks_are_not_taken_for_dense_layers(network: nn.Module) -> None:
    assert dense_layers(network) is None


def test_a_client_that_diverges_is_named_in_a_group() -> None:
    settings, shape = settings_of(partition="iid"), (8, 8)
    trainer = trainer_of(BatchedEngine(), settings, shape)
    assert isinstance(trainer, DenseTrainer)
    features = trainer.data.train.features
    features[trainer.data.partition.indices(3)] *= np.float32(1e30)
    for train in (
        lambda: list(trainer.train(range(7), 2, start_of(settings, shape))),
        lambda: trainer.train_mean(range(7), 2, start_of(settings, shape), float),
    ):
        with pytest.raises(Diverged) as caught:
            train()
        assert (caught.value.round_number, caught.value.client) == (2, 3)


def test_it_leaves_torchs_threads_and_stream_alone() -> None:
    before = torch.get_rng_state()
    chunk_of(BatchedEngine(), settings_of(), (8, 8))
    assert torch.equal(torch.get_rng_state(), before)
