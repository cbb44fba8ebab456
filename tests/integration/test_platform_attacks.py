"""A task that studies an attack, over two nodes: the bytes of one process, and only where owners allow it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_support import DIGITS, Platform, digits_lab, small_settings

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate

ALLOWED = {"institution": {"attacks": ["alie", "backdoor"]}}
ALIE: dict[str, Any] = {
    "attack": "alie",
    "attack_options": {"clients": [0, 1, 2, 3, 10, 11, 12, 13], "z": 1.5},
    "strategy": "median",
    "num_rounds": 4,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("attacks"), client=ALLOWED) as lab:
        yield lab


def test_attackers_on_two_nodes_send_what_they_send_in_one_process(lab: Platform, tmp_path: Path) -> None:
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), tmp_path)
    expected = simulate(small_settings(**ALIE), dataset, chunk_clients=5, placement=[(0, 10), (10, 10)])
    number = lab.submit(**ALIE)
    lab.await_round(number, 2)
    lab.processes["node-a"].popen.kill()  # type: ignore[union-attr]
    lab.start("node-a")
    task = lab.completed(number)
    assert task.digest == expected.digest
    assert any("attack alie: the clients 0, 1, 2, 3, 10" in note for note in task.notes), task.notes


def test_a_node_whose_owner_does_not_allow_the_attack_is_named(lab: Platform) -> None:
    number = lab.submit(attack="sign_flip")
    reason = lab.until(lambda: lab.store.tasks.get(number), lambda task: bool(task and "does not allow" in task.reason))
    assert "node-a does not allow the attack sign_flip (institution.attacks in its client.yml)" in str(reason)
