"""Attacks and samplers over two nodes, with kills in the middle: the bytes of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_support import DIGITS, LONG, Platform, digits_lab, small_settings

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate

ALLOWED = {"institution": {"attacks": ["alie", "backdoor"]}}
ALIE: dict[str, Any] = {
    "attack": "alie",
    "attack_options": {"clients": [0, 1, 2, 3, 10, 11, 12, 13], "z": 1.5},
    "strategy": "median",
    **LONG,
}
MIDDLING: dict[str, Any] = {"local_epochs": 6, "num_rounds": 5}
CHOICE: dict[str, Any] = {
    "sampler": "power_of_choice",
    "sampler_options": {"d": 15},
    "partition": "quantity",
    **MIDDLING,
}
OVER: dict[str, Any] = {
    "sampler": "over_selection",
    "sampler_options": {"epsilon": 0.5},
    "strategy": "median",
    **MIDDLING,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("research"), client=ALLOWED) as lab:
        yield lab


def simulated(folder: Path, chosen: dict[str, Any], **changes: Any) -> str:
    """The digest of the task in one process."""
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), folder)
    settings = small_settings(**chosen)
    return simulate(settings, dataset, chunk_clients=5, placement=[(0, 10), (10, 10)], **changes).digest


def test_attackers_on_two_nodes_send_what_they_send_in_one_process(lab: Platform, tmp_path: Path) -> None:
    number = lab.submit(**ALIE)
    lab.await_round(number, 2)
    lab.kill("node-a")
    lab.start("node-a")
    task = lab.completed(number)
    assert task.digest == simulated(tmp_path, ALIE)
    assert any("the attack alie: the clients 0, 1, 2, 3, 10" in note for note in task.notes), task.notes


def test_a_node_whose_owner_does_not_allow_the_attack_is_named(lab: Platform) -> None:
    number = lab.submit(attack="sign_flip")
    what = "node-a does not allow the attack sign_flip (institution.attacks in its client.yml)"
    lab.await_row(lambda: what in " ".join(lab.task(number).waiting_for), what="for the reason why the task waits")
    assert lab.api.post(f"/tasks/{number}/stop").status_code == 202


def test_a_killed_server_draws_the_cohorts_of_one_process(lab: Platform, tmp_path: Path) -> None:
    number = lab.submit(**CHOICE)
    lab.await_round(number, 3)
    lab.kill("server")
    lab.start("server")
    assert lab.completed(number).digest == simulated(tmp_path, CHOICE)


def test_who_answered_first_is_in_the_record_which_gives_the_same_bytes(lab: Platform, tmp_path: Path) -> None:
    number = lab.submit(**OVER)
    lab.await_round(number, 2)
    lab.kill("server")
    lab.start("server")
    task = lab.completed(number)
    checkpoint = lab.server_spool / "checkpoints" / f"task-{number}" / "round-0005.json"
    missing = json.loads(checkpoint.read_text())["missing"]
    assert all(len(clients) <= 5 for clients in missing.values()), "15 are drawn, 10 are enough"
    assert task.digest == simulated(tmp_path, OVER, missing=missing)
