"""What trains many clients together on a GPU gives what one after another does; here it runs on a processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.learning.components import Components
from fedsim.learning.engine import SequentialTrainer
from fedsim.learning.engines import ClientData
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import Examples, FloatArray
from fedsim.learning.networks import build_model, initial_vector, num_parameters
from fedsim.learning.partitions import make_partition
from fedsim.learning.stacked import StackedTrainer, activation_bytes, can_stack
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS, TRAIN_LOSS, UPDATE_NORM

pytestmark = pytest.mark.usefixtures("deterministic_torch")

SHAPE, CLASSES, CLIENTS = (8, 8), 4, 6
CNN = {"model": "cnn", "model_options": {"channels": (2, 3), "hidden": 5}}
NETWORKS = [CNN, {"model": "mlp"}, {"model": "logistic"}]


def settings_of(**chosen: Any) -> TaskSettings:
    given = {"partition": "dirichlet", "num_clients": CLIENTS, "local_epochs": 2, "local_learning_rate": 0.02}
    return TaskSettings.model_validate({**given, "local_batch_size": 7, **chosen})


def data_of(settings: TaskSettings) -> ClientData:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, CLASSES, 150)
    features = (rng.normal(size=(CLASSES, *SHAPE))[labels] + rng.normal(size=(150, *SHAPE))).astype(np.float32)
    return ClientData(settings, Examples(features, labels), make_partition(settings, labels))


def spec_of(settings: TaskSettings) -> ModelSpec:
    return ModelSpec.of(settings, SHAPE, CLASSES)


def stacked(settings: TaskSettings, group_bytes: int = 1 << 20, device: str = "cpu") -> StackedTrainer:
    model = build_model(spec_of(settings)).to(device)
    return StackedTrainer(data_of(settings), model, Components.of(settings).schedule, group_bytes)


def alike(one: FloatArray, two: FloatArray) -> bool:
    return float(np.abs(one - two).max() / np.abs(one).max()) < 1e-5


def assert_trains_alike(settings: TaskSettings, trainer: StackedTrainer) -> None:
    start = initial_vector(spec_of(settings), settings.seed)
    reference = SequentialTrainer(data_of(settings), spec_of(settings), Components.of(settings), "cpu")
    expected = [update.copied() for update in reference.train(range(CLIENTS), 3, start)]
    total, examples = np.zeros(start.size), 0
    for one, same in zip(expected, trainer.train(range(CLIENTS), 3, start), strict=True):
        assert alike(one.arrays[PARAMETERS], same.arrays[PARAMETERS])
        assert (same.client, same.num_examples) == (one.client, one.num_examples)
        assert same.metrics[TRAIN_LOSS] == pytest.approx(one.metrics[TRAIN_LOSS], rel=1e-5)
        total += one.arrays[PARAMETERS].astype(np.float64) * one.num_examples
        examples += one.num_examples
    mean = trainer.train_mean(range(CLIENTS), 3, start, float, 1)
    assert alike((total / examples).astype(np.float32), mean.arrays[PARAMETERS])
    norms = [np.linalg.norm(one.arrays[PARAMETERS] - start) for one in expected]
    assert [figures.norm for figures in mean.client_figures] == pytest.approx(norms, rel=1e-4)
    assert mean.metrics[UPDATE_NORM] > 0


@pytest.mark.parametrize("chosen", NETWORKS, ids=lambda chosen: chosen["model"])
@pytest.mark.parametrize("group_bytes", [1, 1 << 20], ids=["alone", "together"])
def test_clients_of_any_size_are_trained_as_one_by_one(chosen: dict[str, Any], group_bytes: int) -> None:
    settings = settings_of(**chosen)
    assert_trains_alike(settings, stacked(settings, group_bytes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("chosen", NETWORKS, ids=lambda chosen: chosen["model"])
def test_a_gpu_trains_what_a_processor_does(chosen: dict[str, Any]) -> None:
    settings = settings_of(**chosen)
    trainer = BatchedEngine().start(data_of(settings), spec_of(settings), Components.of(settings), "cuda")
    assert isinstance(trainer, StackedTrainer)
    assert_trains_alike(settings, trainer)


def test_a_client_that_diverges_is_named() -> None:
    settings = settings_of(**CNN, partition="iid")
    trainer = stacked(settings)
    trainer.data.train.features[trainer.data.partition.indices(4)] *= np.float32(1e30)
    with pytest.raises(Diverged) as caught:
        trainer.train_mean(range(CLIENTS), 2, initial_vector(spec_of(settings), 0), float)
    assert (caught.value.round_number, caught.value.client) == (2, 4)


class Branching(nn.Linear):
    """Computes by what it sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


@pytest.mark.parametrize("network", [nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), Branching(3, 2)])
def test_networks_over_which_torch_cannot_map_are_left_to_one_by_one(network: nn.Module) -> None:
    assert can_stack(nn.Linear(3, 2), (3,))
    assert not can_stack(network, (3,))


def test_the_memory_of_a_batch_is_known_without_computing_it() -> None:
    network = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 2))
    ten, twenty = (activation_bytes(network, (3,), size) for size in (10, 20))
    assert twenty - ten == 10 * 4 * (3 + 50 + 50)
    assert 0 <= ten - (twenty - ten) <= 4 * num_parameters(network)
