"""Three banks, each with its own customers: a model that none of them could have been given the data for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from presence import real_data

from fedsim.config.models import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings


@pytest.fixture(scope="module")
def banks() -> Iterator[list[DataSet]]:
    threads = torch.get_num_threads()
    make_deterministic(1)
    yield [
        load_dataset(
            DataSetConfig(
                name="credit",
                path=Path(f"default_credit_homo_{bank}.csv"),
                test_path=Path("default_credit_homo_test.csv"),
                label_column="y",
                id_column="id",
            ),
            real_data("default-credit"),
        )
        for bank in ("guest", "host_1", "host_2")
    ]
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_three_banks_reach_80_percent_and_an_auc_of_70(banks: list[DataSet], model: str) -> None:
    settings = TaskSettings(
        model=model,
        partition="local",
        num_clients=3,
        fraction_train=1.0,
        num_rounds=10,
        local_epochs=1,
        local_batch_size=32,
        local_learning_rate=0.05,
        evaluate_every=10,
    )
    last = simulate(settings, banks).rounds[-1]
    assert last.num_examples == 24_000
    assert last.metrics is not None
    assert last.metrics["auc"] is not None
    assert last.metrics["accuracy"] >= 0.80
    assert last.metrics["auc"] >= 0.70
