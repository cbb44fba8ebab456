"""Numbers mean the same on every node: columns and labels in another order, and other columns, over three banks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from platform_support import Platform
from presence import real_data

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.testing.local_cluster import NodeSpec

NODES = ("node-a", "node-b", "node-c")
WORDS = {"no": 0, "yes": 1}
# What node-b has instead, by data set.
OTHER: dict[str, dict[str, Any]] = {
    "equal": {},
    "order": {"columns": ("b", "y", "a")},
    "labels": {"labels": {"yes": 0, "no": 1}},
    "other": {"columns": ("y", "a", "z")},
    "stray": {"labels": {**WORDS, "maybe": 2}},
    "together": {"columns": ("b", "y", "a")},
    "credit": {},
}
LOCAL = {"partition": "local", "fraction_train": 1.0, "model": "logistic", "num_rounds": 2, "num_nodes": 0}
CREDIT = {"label_column": "y", "id_column": "id"}


def write(path: Path, number: int, columns: Sequence[str] = ("y", "a", "b")) -> None:
    """A table in which `y` says whether the first number is less than the second."""
    lines = [",".join(columns)]
    for row in range(80):
        first, second = (row * 7 + number) % 11, (row * 5 + 3) % 11
        cells = {"a": first, "b": second, "z": second, "y": "yes" if first < second else "no"}
        lines.append(",".join(str(cells[name]) for name in columns))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def reordered(source: Path, target: Path) -> None:
    """The same table with its columns in another order."""
    with source.open(newline="") as given, target.open("w", newline="") as file:
        csv.writer(file).writerows([*row[3:], *row[:3]] for row in csv.reader(given))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("schema")
    real = real_data("default-credit")
    specs = []
    for number, node in enumerate(NODES):
        data = folder / f"data-{node}"
        data.mkdir()
        datasets: list[dict[str, Any]] = []
        for name, other in OTHER.items():
            if name == "credit":
                continue
            change = other if node == "node-b" else {}
            write(data / f"{name}.csv", number, change.get("columns", ("y", "a", "b")))
            labels = change.get("labels", WORDS)
            scale = "common" if name == "together" else "none"
            keys = {
                "scale": scale,
                "label_column": "y",
                "labels": labels,
                "test_share": 0.25,
                "share": node == "node-a",
            }
            datasets.append({"name": name, "path": f"{name}.csv", **keys})
        for name in ("credit", "mixed") if node != "node-c" else ():
            source = real / f"default_credit_homo_{'guest' if node == 'node-a' else 'host_1'}.csv"
            if name == "mixed" and node == "node-b":
                reordered(source, data / f"{name}.csv")
            else:
                (data / f"{name}.csv").symlink_to(source)
            datasets.append({"name": name, "path": f"{name}.csv", **CREDIT})
        specs.append(NodeSpec(node, data, datasets, {"announce_seconds": 2}))
    own = folder / "data-server"
    own.mkdir()
    reordered(real / "default_credit_homo_test.csv", own / "mixed.csv")
    (own / "credit.csv").symlink_to(real / "default_credit_homo_test.csv")
    tests = [{"name": n, "path": f"{n}.csv", "test_path": f"{n}.csv", **CREDIT} for n in ("credit", "mixed")]
    with Platform(folder / "lab", specs, server={"data": str(own), "datasets": tests}) as lab:
        yield lab


@pytest.fixture(scope="module")
def equal(lab: Platform) -> str:
    """The digest with equal files."""
    task = lab.completed(lab.submit(dataset="equal", **LOCAL))
    assert (task.nodes, task.left_out, task.notes) == (NODES, {}, ())
    assert task.digest is not None
    return task.digest


@pytest.mark.parametrize("dataset", ["order", "labels"])
def test_another_order_of_columns_or_labels_gives_the_digest_of_equal_files(
    lab: Platform, equal: str, dataset: str
) -> None:
    task = lab.completed(lab.submit(dataset=dataset, **LOCAL))
    assert (task.nodes, task.left_out, task.digest) == (NODES, {}, equal)


def test_a_node_with_other_columns_is_left_out_by_name_everywhere(lab: Platform) -> None:
    number = lab.submit(dataset="other", **LOCAL)
    task = lab.completed(number)
    why = "lacks the columns b of the data of node-a and has z instead"
    assert (task.nodes, task.left_out) == (("node-a", "node-c"), {"node-b": why})
    assert lab.api.get(f"/tasks/{number}").json()["task"]["left_out"] == {"node-b": why}
    events = {event.kind: event.text for event in lab.store.events.newest(task=number)}
    assert events["left_out"] == f"node-b takes no part: it {why}"
    assert events["schema"] == "the order of columns and labels is that of node-a"
    about = lab.api.get(f"/tasks/{number}/checkpoints/2?part=json").json()
    assert (about["left_out"], about["schema_from"]) == ({"node-b": why}, "node-a")
    assert about["data_schema"]["features"] == ["a", "b"]
    assert about["data_schema"]["labels"] == ["no", "yes"]
    kept = json.loads((lab.node_spool("node-a") / "checkpoints" / f"task-{number:06d}.json").read_text())
    assert kept["data_schema"] == about["data_schema"], "a node predicts with the task's order"


def test_a_class_that_only_one_node_has_does_not_change_the_model_of_the_others(lab: Platform) -> None:
    task = lab.completed(lab.submit(dataset="stray", **LOCAL))
    assert task.nodes == ("node-a", "node-c")
    assert task.left_out["node-b"].startswith("has the label maybe")
    named = lab.completed(lab.submit(dataset="stray", nodes="node-b, node-a", **LOCAL))
    assert named.nodes == ("node-a", "node-b"), "the first node that the task names has the class"


def test_a_task_that_names_a_node_with_other_columns_waits_with_the_difference(lab: Platform) -> None:
    number = lab.submit(dataset="other", nodes="node-a, node-b", **LOCAL)
    waits = lab.await_row(lambda: lab.task(number).waiting_for or None)
    assert waits[0].startswith("the task names nodes that cannot take part: node-b lacks the columns b")
    lab.api.post(f"/tasks/{number}/stop")
    lab.finish(number)


def test_nodes_standardise_their_columns_together(lab: Platform) -> None:
    number = lab.submit(dataset="together", **LOCAL)
    task = lab.completed(number)
    config = DataSetConfig(
        name="together", path=Path("together.csv"), label_column="y", labels=WORDS, test_share=0.25, scale="common"
    )
    banks = [load_dataset(config, lab.folder.parent / f"data-{node}") for node in NODES]
    make_deterministic(1)
    expected = simulate(task.settings.model_copy(update={"num_clients": 3}), banks)
    assert task.digest == expected.digest
    first = lab.store.rounds.of_task(number)[0].metrics["loss"]
    assert first == pytest.approx(expected.rounds[0].metrics["loss"]), "round 0 is tested on scaled columns, too"
    events = {event.kind: event.text for event in lab.store.events.newest(task=number)}
    assert events["phase"] == (
        "common_scale: the columns are standardised by 180 examples of node-a, node-b, node-c together"
    )
    values = np.concatenate([bank.train.features[:, bank.data_schema.features.index("b")] for bank in banks])
    kept = (lab.node_spool("node-b") / "checkpoints" / f"task-{number:06d}.json").read_text()
    for about in (lab.api.get(f"/tasks/{number}/checkpoints/2?part=json").json(), json.loads(kept)):
        assert about["data_schema"]["scaling"] == "common"
        assert about["data_schema"]["scale_values"]["b"] == pytest.approx([values.mean(), values.std()])
    assert '"answer"' in (lab.node_spool("node-b") / "audit.jsonl").read_text()


def test_two_banks_with_columns_in_another_order_get_the_digest_and_auc_of_equal_order(lab: Platform) -> None:
    settings = {**LOCAL, "model": "mlp", "local_learning_rate": 0.05, "local_epochs": 1, "local_batch_size": 32}
    numbers = [lab.submit(dataset=name, **settings) for name in ("credit", "mixed")]
    equal, mixed = (lab.completed(number) for number in numbers)
    assert (equal.digest, equal.nodes) == (mixed.digest, mixed.nodes)
    assert equal.metrics["auc"] == mixed.metrics["auc"]
    assert equal.metrics["auc"] is not None
    assert equal.metrics["auc"] > 0.6


def test_the_page_of_the_nodes_and_the_api_show_columns_and_labels(lab: Platform) -> None:
    found = {node["name"]: node["hello"]["datasets"] for node in lab.api.get("/nodes").json()["nodes"]}
    shown = {info["name"]: info["data_schema"] for info in found["node-b"]}
    assert shown["order"]["features"] == ["b", "a"]
    assert shown["labels"]["labels"] == ["yes", "no"]
