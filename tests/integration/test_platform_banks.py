"""The banks' case on the whole platform: three institutions, each with its own customers, train one model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from platform_support import Platform, small_settings
from presence import real_data

from fedsim.testing.local_cluster import NodeSpec

COLUMNS = {"label_column": "y", "id_column": "id"}
BANKS = ("guest", "host_1", "host_2")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    data = real_data("default-credit")
    test = "default_credit_homo_test.csv"
    nodes = [
        NodeSpec(
            bank.replace("_", "-"), data, [{"name": "credit", "path": f"default_credit_homo_{bank}.csv", **COLUMNS}]
        )
        for bank in BANKS
    ]
    server = {"data": str(data), "datasets": [{"name": "credit", "path": test, "test_path": test, **COLUMNS}]}
    with Platform(tmp_path_factory.mktemp("banks"), nodes, server=server) as lab:
        yield lab


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_three_banks_train_one_model_without_showing_a_customer(lab: Platform, model: str) -> None:
    number = lab.submit(
        dataset="credit",
        model=model,
        partition="local",
        fraction_train=1.0,
        num_rounds=10,
        local_epochs=1,
        local_batch_size=32,
        local_learning_rate=0.05,
        num_nodes=3,
        evaluate_every=5,
    )
    task = lab.completed(number)
    last = lab.store.rounds.of_task(number)[-1]
    assert last.metrics["accuracy"] is not None
    assert last.metrics["auc"] is not None
    assert last.metrics["accuracy"] >= 0.80
    assert last.metrics["auc"] >= 0.70
    assert last.num_examples == 3 * 8000
    assert task.nodes == ("guest", "host-1", "host-2")
    for bank in task.nodes:
        left = (lab.node_spool(bank) / "audit.jsonl").read_text()
        assert '"localparam"' in left
        assert '"testset"' not in left


def test_a_model_for_images_does_not_fit_a_table_and_the_task_says_so(lab: Platform) -> None:
    task = lab.finish(lab.submit(dataset="credit", model="cnn", partition="local", num_nodes=3))
    assert task.state == "failed"
    assert "cnn" in task.reason
    assert "[23]" in task.reason


def test_more_clients_than_examples_are_refused_in_the_form_with_the_number(lab: Platform) -> None:
    answer = lab.api.post("/tasks", json={"dataset": "credit", "model": "logistic", "num_clients": 9000})
    assert answer.status_code == 422
    assert "8000" in answer.json()["problems"]["num_clients"]


def test_an_unknown_data_set_is_refused_with_those_there_are(lab: Platform) -> None:
    answer = lab.api.post("/tasks", json={"dataset": "credits"})
    assert answer.status_code == 422
    assert "credit" in answer.json()["problems"]["dataset"]


def test_data_that_is_put_into_the_folder_is_announced_without_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    dataset = {"name": "late", "path": "late.csv", "label_column": "y", "share": True, "test_share": 0.25}
    with Platform(tmp_path / "lab", [NodeSpec("node-a", data, [dataset], {"announce_seconds": 1})]) as lab:
        # The web would refuse a data set that no node has announced; here it was, once.
        settings = small_settings(dataset="late", model="logistic", num_nodes=1, num_clients=4, num_rounds=1)
        number = lab.store.tasks.create(1, settings, uuid4().hex, 0).number
        waits = lab.await_row(lambda: [w for w in lab.task(number).waiting_for if "has no data set late" in w] or None)
        assert waits
        lines = ["y,a,b", *(f"{i % 2},{i % 7},{i % 5}" for i in range(200))]
        (data / "late.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        lab.completed(number)
