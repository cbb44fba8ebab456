"""Statistics as a task of its own kind, over two nodes and to the end: by the API, the page and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from platform_support import Platform

from fedsim.testing.local_cluster import NodeSpec

TASK: dict[str, Any] = {"kind": "statistics", "dataset": "patients", "nodes": "", "purpose": "look at the columns"}
TABLE: dict[str, Any] = {
    "name": "patients",
    "path": "patients.csv",
    "label_column": "ill",
    "scale": "standard",
    "missing": "mean",
    "labels": {"no": 0, "yes": 1},
}
Rows = list[tuple[float, float | None, str]]


def rows_of(seed: int, count: int) -> Rows:
    rng = np.random.default_rng(seed)
    ages, doses = rng.normal(40 + 10 * seed, 12, count).round(1), rng.gamma(2, 5, count).round(2)
    return [
        (float(age), None if at % 9 == 0 else float(dose), "yes" if at % 4 == 0 else "no")
        for at, (age, dose) in enumerate(zip(ages, doses, strict=True))
    ]


PATIENTS = {"node-a": rows_of(1, 400), "node-b": rows_of(2, 700), "node-c": rows_of(3, 100)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("statistics")
    nodes = []
    for name, rows in PATIENTS.items():
        data = folder / name
        data.mkdir()
        lines = [f"{age},{'' if dose is None else dose},{ill}" for age, dose, ill in rows]
        (data / "patients.csv").write_text("\n".join(["age,dose,ill", *lines]))
        rule = {"node-a": "extremes", "node-b": "sums", "node-c": "none"}[name]
        access = "guarded" if name == "node-b" else "open"
        own = {"announce_seconds": 1, "institution": {"statistics": rule, "min_difference": 20}}
        # Open and guarded data do not mix in a task, so node-b has the same file under both names.
        sets = [{**TABLE, "access": "open"}, {**TABLE, "name": "kept", "access": access}]
        nodes.append(NodeSpec(name, data, sets, own))
    with Platform(folder / "lab", nodes, server={"node_timeout_seconds": 8}) as lab:
        yield lab


def gathered(lab: Platform, number: int) -> dict[str, Any]:
    answer = lab.api.get(f"/tasks/{number}/statistics")
    assert answer.status_code == 200
    found = answer.json()["statistics"]
    assert isinstance(found, dict)
    return found


def submit(lab: Platform, **settings: Any) -> int:
    answer = lab.api.post("/tasks", json={**TASK, **settings})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["task"]["number"])


@pytest.fixture(scope="module")
def calm(lab: Platform) -> tuple[int, dict[str, Any]]:
    """A task to which nothing happens, and what it found."""
    number = submit(lab)
    assert lab.completed(number).nodes == ("node-a", "node-b")
    return number, gathered(lab, number)


def test_the_numbers_are_those_of_the_files_of_both_nodes(lab: Platform, calm: tuple[int, dict[str, Any]]) -> None:
    number, found = calm
    assert found["examples"] == {"node-a": 400, "node-b": 700}
    rows = PATIENTS["node-a"] + PATIENTS["node-b"]
    for place, column in enumerate(found["columns"]):
        values = np.array([row[place] for row in rows if row[place] is not None], np.float64)
        assert column["name"] == ("age", "dose")[place]
        assert (column["count"], column["missing"]) == (len(values), len(rows) - len(values))
        assert column["mean"] == pytest.approx(values.mean())
        assert column["deviation"] == pytest.approx(values.std())
        for order, value in column["quantiles"].items():
            assert value == pytest.approx(np.quantile(values, float(order)), abs=0.2 * values.std()), order
        assert column["least"] is None, "the institution of node-b shows none"
    assert found["labels"] == [
        {"label": "no", "nodes": {"node-a": 300, "node-b": 525}},
        {"label": "yes", "nodes": {"node-a": 100, "node-b": 175}},
    ]
    task = lab.task(number)
    assert task.left_out == {
        "node-c": "lets no statistics of its data leave (institution.statistics in its client.yml)"
    }
    assert task.digest is None
    assert lab.store.rounds.of_task(number) == []
    for node in ("node-a", "node-b"):
        lines = [json.loads(line) for line in (lab.node_spool(node) / "audit.jsonl").read_text().splitlines()]
        left = [line for line in lines if line["task"] == number and "to" in line]
        assert [(line["kind"], line["phase"]) for line in left] == [("answer", "statistics")]
        assert left[0]["num_examples"] == len(PATIENTS[node])
        lab.await_gone(lab.node_spool(node), "request/*")


def test_kills_of_a_node_and_the_server_change_no_number(lab: Platform, calm: tuple[int, dict[str, Any]]) -> None:
    lab.kill("node-b")  # it is not missed yet, and the task is planned with it
    number = submit(lab)
    lab.await_row(lambda: lab.task(number).nodes or None, what="for the plan")
    lab.kill("server")
    lab.start("server")
    lab.start("node-b")
    lab.completed(number)
    assert gathered(lab, number) == calm[1]


def test_guarded_data_is_rounded_and_counted_in_whole_blocks(lab: Platform) -> None:
    number = submit(lab, dataset="kept", nodes="node-b")
    lab.completed(number)
    found = gathered(lab, number)
    assert found["guarded"] == {"node-b": True}
    assert found["examples"]["node-b"] % 10 == 0
    ages = np.array([age for age, _, _ in PATIENTS["node-b"]])
    assert found["columns"][0]["mean"] == pytest.approx(ages.mean(), abs=2)
    assert found["columns"][0]["mean"] == pytest.approx(round(found["columns"][0]["mean"]), abs=1e-9)


def test_what_does_not_apply_is_refused_and_a_training_has_no_statistics(lab: Platform) -> None:
    answer = lab.api.post("/tasks", json={**TASK, "num_rounds": 3})
    assert answer.status_code == 422
    assert "does not apply to a task of the kind statistics" in answer.json()["problems"]["num_rounds"]
    number = lab.submit(dataset="patients", num_rounds=1, partition="local", num_nodes=1, evaluation="nodes")
    assert lab.api.get(f"/tasks/{number}/statistics").json() == {"statistics": None}
    lab.api.post(f"/tasks/{number}/stop")
    lab.finish(number)
