"""Objectives besides classification, schedules and `max_steps` on the whole platform."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from platform_support import SMALL, Platform, small_settings

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.testing.local_cluster import NodeSpec

NUMBERS: dict[str, Any] = {
    "name": "prices",
    "path": "prices.csv",
    "targets": "numbers",
    "label_columns": ["price", "age"],
    "test_share": 0.2,
    "share": True,
}
CHOSEN: dict[str, Any] = {
    "dataset": "prices",
    "model": "logistic",
    "objective": "regression",
    "num_clients": 4,
    "fraction_train": 1.0,
    "max_steps": 7,
    "schedule": "cosine",
    "schedule_options": {"warmup_rounds": 2},
    "num_rounds": 8,
    "local_learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    prices, ages = x @ [1.0, -2.0, 0.5] + 3.0, x @ [0.0, 1.0, 1.0] + rng.normal(scale=0.1, size=400)
    rows = [f"{','.join(map(str, row))},{p},{a}" for row, p, a in zip(x.round(4), prices, ages, strict=True)]
    (data / "prices.csv").write_text("\n".join(["a,b,c,price,age", *rows]) + "\n", encoding="utf-8")
    nodes = [NodeSpec(name, data, [{**NUMBERS, "access": "open"}]) for name in ("node-a", "node-b")]
    with Platform(tmp_path_factory.mktemp("lab"), nodes) as lab:
        yield lab


def test_numbers_are_predicted_as_in_the_simulation(lab: Platform) -> None:
    number = lab.submit(**CHOSEN)
    task = lab.completed(number)
    last = lab.store.rounds.of_task(number)[-1]
    assert set(last.metrics) == {"loss", "mse", "mae", "r2"}
    assert (last.metrics["r2"] or 0.0) > 0.9
    make_deterministic(1)
    data = load_dataset(DataSetConfig.model_validate(NUMBERS), lab.nodes[0].data)
    simulated = simulate(task.settings, data, placement=[(0, 2), (2, 2)])
    assert simulated.digest == last.digest
    assert simulated.rounds[-1].metrics == pytest.approx(last.metrics)


def test_an_objective_that_does_not_fit_the_data_is_refused_at_submission_and_by_the_server(lab: Platform) -> None:
    wrong = CHOSEN | {"objective": "classification"}
    reason = "has targets that are numbers, and this objective needs one class of each example"
    answer = lab.api.post("/tasks", json=SMALL | wrong)
    assert answer.status_code == 422
    assert answer.json()["problems"]["objective"] == f"the data set prices {reason}"
    assert lab.api.get("/options").json()["datasets"][0]["targets"] == "numbers"
    # A task that was submitted before a node announced its data.
    number = lab.store.tasks.create(1, small_settings(**wrong), uuid4().hex, 0).number
    assert lab.await_row(lambda: [why for why in lab.task(number).waiting_for if reason in why] or None)
