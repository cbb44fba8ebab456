"""Over two nodes: a completed task gets more rounds, and ends as if it had had all of them from the start."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_support import DIGITS, Platform, digits_lab, small_settings

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate

HALF, WHOLE = 3, 6
STATEFUL: dict[str, Any] = {"strategy": "scaffold", "local_epochs": 4}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("continue"), server={"retention": {"continue_tasks": 2}}) as lab:
        yield lab


def simulated(folder: Path, **chosen: Any) -> str:
    """The digest of the task in one process, with all rounds from the start."""
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), folder)
    settings = small_settings(**chosen, num_rounds=WHOLE)
    return simulate(settings, dataset, chunk_clients=5, placement=[(0, 10), (10, 10)]).digest


def go_on(lab: Platform, number: int, rounds: int = WHOLE - HALF) -> Any:
    return lab.api.post(f"/tasks/{number}/continue", json={"rounds": rounds})


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"strategy": "fedavgm", "strategy_options": {"momentum": 0.9}},
        {"strategy": "fedadam"},
        STATEFUL,
        {"transforms": ["difference", "topk"], "local_epochs": 4},
    ],
    ids=["fedavg", "fedavgm", "fedadam", "scaffold", "topk"],
)
def test_two_halves_have_the_digest_of_the_whole(lab: Platform, tmp_path: Path, chosen: dict[str, Any]) -> None:
    number = lab.submit(**chosen, num_rounds=HALF)
    half = lab.completed(number)
    assert half.resume_round == HALF
    assert go_on(lab, number).status_code == 202  # at once: nodes may not have ended the first run yet
    whole = lab.completed(number)
    assert (whole.digest, whole.settings.num_rounds) == (simulated(tmp_path, **chosen), WHOLE)
    records = lab.store.rounds.of_task(number)
    assert [record.round for record in records] == list(range(WHOLE + 1))
    assert records[HALF].digest == half.digest
    assert [saved.round for saved in lab.store.checkpoints.of_task(number)] == [HALF, WHOLE]


def test_a_restart_in_the_middle_of_the_further_rounds_changes_nothing(lab: Platform, tmp_path: Path) -> None:
    chosen = STATEFUL | {"local_epochs": 8}
    number = lab.submit(**chosen, num_rounds=HALF)
    lab.completed(number)
    lab.kill("server")
    assert go_on(lab, number).status_code == 202
    lab.start("server")
    lab.await_round(number, HALF + 2)
    for name in ("server", "node-a"):
        lab.kill(name)
        lab.start(name)
    assert lab.completed(number).digest == simulated(tmp_path, **chosen)


def test_a_node_without_what_its_clients_kept_refuses_and_the_task_stays_complete(lab: Platform) -> None:
    number = lab.submit(**STATEFUL, num_rounds=HALF)
    half = lab.completed(number)
    for node in ("node-a", "node-b"):
        lab.await_gone(lab.node_spool(node), "localparam/*")
    shutil.rmtree(lab.node_spool("node-b") / "client-states")
    assert go_on(lab, number).status_code == 202
    refused = lab.completed(number)
    assert "it could not be continued: node node-b refused: what its clients kept" in refused.reason
    assert (refused.digest, refused.settings.num_rounds) == (half.digest, HALF)


def test_the_states_of_the_newest_completed_tasks_alone_stay(lab: Platform) -> None:
    numbers = [lab.submit(num_rounds=1) for _ in range(3)]
    for number in numbers:
        lab.completed(number)
    lab.await_row(lambda: lab.task(numbers[0]).resume_uid is None)
    lab.await_gone(lab.server_spool, f"resumable/task-{numbers[0]:06d}")
    answer = go_on(lab, numbers[0])
    assert answer.status_code == 409
    assert "the server keeps the states of the newest 2 completed tasks" in answer.text
    assert go_on(lab, numbers[2], 1).status_code == 202
    assert lab.completed(numbers[2]).round == 2
