"""The published figures of federated averaging on MNIST, with the pieces that the platform runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from presence import real_data

from fedsim.config.models import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.engines import Engine
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings

pytestmark = pytest.mark.timeout(900)
RUNS = [
    (BatchedEngine, 0),
    *(pytest.param(SequentialEngine, seed, marks=pytest.mark.long) for seed in (0, 1, 2)),
]


@pytest.fixture(scope="module")
def mnist() -> Iterator[DataSet]:
    threads = torch.get_num_threads()
    make_deterministic(1)
    yield load_dataset(DataSetConfig(name="mnist", path=Path("mnist")), real_data("mnist").parent)
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)


def _accuracies(dataset: DataSet, engine: type[Engine] = SequentialEngine, **chosen: Any) -> list[float]:
    """The accuracies of the rounds that were evaluated."""
    rounds = simulate(TaskSettings(**chosen), dataset, engine=engine).rounds
    return [done.metrics["accuracy"] for done in rounds if done.metrics]


@pytest.mark.parametrize(("engine", "seed"), RUNS)
def test_the_default_task_over_20_rounds_ends_between_70_and_88_percent(
    mnist: DataSet, engine: type[Engine], seed: int
) -> None:
    assert 0.70 <= _accuracies(mnist, engine, num_rounds=20, seed=seed)[-1] <= 0.88


@pytest.mark.long
def test_the_default_task_with_iid_data_reaches_93_percent(mnist: DataSet) -> None:
    assert _accuracies(mnist, num_rounds=20, partition="iid")[-1] >= 0.93


@pytest.mark.long
def test_mcmahans_2nn_reaches_97_percent_by_round_87(mnist: DataSet) -> None:
    # McMahan et al. 2017, table 1: 2NN, IID, C = 0.1, E = 1, B = 10 needs 87 rounds.
    accuracies = _accuracies(
        mnist, num_rounds=87, partition="iid", local_epochs=1, local_learning_rate=0.1, evaluate_every=5
    )
    assert max(accuracies) >= 0.97
