"""The clients that data names, on the whole platform: plays by speaker, of nodes with other plays and with the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from platform_support import SMALL, Platform, small_settings
from presence import real_data

from fedsim.config import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.testing.local_cluster import NodeSpec

PLAYS: dict[str, Any] = {
    "name": "plays",
    "path": "play.txt",
    "format": "text",
    "length": 20,
    "speakers": True,
    "test_share": 0.2,
    "share": True,
    "access": "open",
}
SHAKESPEARE = PLAYS | {"name": "shakespeare", "path": "shakespeare/input.txt", "length": 80, "test_share": 0.01}
NOTES: dict[str, Any] = {"name": "notes", "path": "play.txt", "format": "text", "length": 20, "access": "open"}
CHOSEN: dict[str, Any] = {
    "dataset": "plays",
    "model": "shakespeare_lstm",
    "model_options": {"hidden": 8},
    "objective": "next_token",
    "partition": "natural",
    "num_clients": 5,
    "fraction_train": 1.0,
    "num_rounds": 2,
    "max_steps": 3,
    "testset_from": "node-a",
}


def play(*speakers: str) -> str:
    return "".join(
        f"{name}:\nSo speaks {name}, for the {count}th time, and says no more.\n\n"
        for count in range(6)
        for name in speakers
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    nodes = []
    for name, speakers in (("node-a", ("Ann", "Cid", "Bob")), ("node-b", ("Eve", "Dan"))):
        data = tmp_path_factory.mktemp(name)
        (data / "play.txt").write_text(play(*speakers), encoding="utf-8")
        (data / "shakespeare").symlink_to(real_data("shakespeare"))  # read where it is
        nodes.append(NodeSpec(name, data, [PLAYS, SHAKESPEARE, NOTES]))
    with Platform(tmp_path_factory.mktemp("lab"), nodes) as lab:
        yield lab


def loaded(keys: dict[str, Any], folder: Path) -> DataSet:
    return load_dataset(DataSetConfig.model_validate(keys), folder)


def test_each_node_has_the_speakers_of_its_own_play(lab: Platform) -> None:
    number = lab.submit(**CHOSEN)
    task = lab.completed(number)
    make_deterministic(1)
    simulated = simulate(task.settings, [loaded(PLAYS, node.data) for node in lab.nodes])
    last = lab.store.rounds.of_task(number)[-1]
    assert last.digest == simulated.digest
    assert last.metrics == pytest.approx(simulated.rounds[-1].metrics)
    assert "Cid" not in "".join(path.read_text() for path in (lab.server_spool / "hello").glob("*.json"))


def test_nodes_with_the_same_play_divide_its_speakers(lab: Platform) -> None:
    number = lab.submit(**CHOSEN | {"dataset": "shakespeare", "num_clients": 6, "local_learning_rate": 1.0})
    task = lab.completed(number)
    make_deterministic(1)
    simulated = simulate(task.settings, loaded(SHAKESPEARE, lab.nodes[0].data), placement=[(0, 3), (3, 3)])
    assert lab.store.rounds.of_task(number)[-1].digest == simulated.digest


@pytest.mark.parametrize(
    ("wrong", "field", "problem"),
    [
        ({"num_clients": 6}, "num_clients", "must be at most 5: plays names no more clients with at least 1 examples"),
        ({"dataset": "notes"}, "partition", "the data set notes does not say to which client an example belongs"),
        ({"model": "2nn", "model_options": {}, "objective": "classification"}, "objective", "has targets that are"),
        ({"objective": "classification"}, "model", "model shakespeare_lstm predicts a class at each place"),
    ],
)
def test_what_does_not_fit_is_refused_at_submission(
    lab: Platform, wrong: dict[str, Any], field: str, problem: str
) -> None:
    answer = lab.api.post("/tasks", json=SMALL | CHOSEN | wrong)
    assert answer.status_code == 422
    assert problem in answer.json()["problems"][field]


def test_a_task_that_was_submitted_before_the_data_was_known_waits_with_the_reason(lab: Platform) -> None:
    number = lab.store.tasks.create(1, small_settings(**CHOSEN | {"num_clients": 6}), uuid4().hex, 0).number
    reason = "6 clients are wanted, the nodes node-a, node-b can simulate 5 together that their data names"
    assert lab.await_row(lambda: [why for why in lab.task(number).waiting_for if reason in why] or None)
