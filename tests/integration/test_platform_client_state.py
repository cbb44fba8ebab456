"""Over two nodes, undisturbed and with kills in the middle: arrays that go down, what stays on nodes, and codecs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from platform_support import Platform, digits_lab, undisturbed
from safetensors import safe_open

NUM_PARAMETERS = 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
INT8: dict[str, Any] = {"transforms": ["difference", "int8"], "num_rounds": 2}
TOPK: dict[str, Any] = {"transforms": ["difference", "topk"], "num_rounds": 4, "local_epochs": 6}
CHOSEN = {"strategy": "scaffold", "num_rounds": 6, "local_epochs": 6}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("states")) as lab:
        yield lab


def test_scaffold_over_two_nodes_gives_what_one_process_gives(lab: Platform) -> None:
    number = lab.submit(**CHOSEN)
    task = lab.completed(number)
    assert task.digest == undisturbed(**CHOSEN)
    checkpoint = lab.server_spool / "checkpoints" / f"task-{number}" / "round-0006.safetensors"
    kept = lab.node_spool("node-a") / "checkpoints" / f"task-{number:06d}.safetensors"
    for path in (checkpoint, kept):
        with safe_open(path, "numpy") as file:
            sizes = [file.get_tensor(name).size for name in file.keys()]  # noqa: SIM118 - no mapping
        assert sum(sizes) == NUM_PARAMETERS, "the model alone"
    for node in ("node-a", "node-b"):
        lab.await_gone(lab.node_spool(node), "localparam/*")


def test_an_update_passes_the_transforms_that_the_settings_list(lab: Platform) -> None:
    number = lab.submit(**CHOSEN, transforms=["identity"])
    task = lab.completed(number)
    assert task.settings.transforms == ("identity",)
    assert task.digest == undisturbed(**CHOSEN)


def test_a_stopped_task_is_resumed_with_the_states_of_its_clients_or_not_at_all(lab: Platform) -> None:
    number = lab.submit(**CHOSEN)
    for at in (2, 4):
        lab.await_round(number, at)
        assert lab.api.post(f"/tasks/{number}/stop").status_code == 202
        assert lab.finish(number).state == "stopped"
        for node in ("node-a", "node-b"):
            lab.await_gone(lab.node_spool(node), "localparam/*")
            assert len(list((lab.node_spool(node) / "client-states").glob(f"task-{number:06d}.*"))) == 1
        if at == 2:
            assert lab.api.post(f"/tasks/{number}/resume").status_code == 202
    shutil.rmtree(lab.node_spool("node-b") / "client-states")
    assert lab.api.post(f"/tasks/{number}/resume").status_code == 202
    failed = lab.finish(number)
    assert (failed.state, "what its clients kept" in failed.reason) == ("failed", True), failed.reason


def test_a_resumed_task_ends_with_the_same_bytes(lab: Platform) -> None:
    number = lab.submit(**CHOSEN)
    lab.await_round(number, 3)
    assert lab.api.post(f"/tasks/{number}/stop").status_code == 202
    assert lab.finish(number).state == "stopped"
    assert lab.api.post(f"/tasks/{number}/resume").status_code == 202
    assert lab.completed(number).digest == undisturbed(**CHOSEN)


@pytest.mark.parametrize(
    "victims",
    [
        ["node-a"],
        pytest.param(["server"], marks=pytest.mark.long),
        pytest.param(["workers of node-b"], marks=pytest.mark.long),
    ],
    ids=lambda names: names[0],
)
def test_clients_keep_their_state_over_a_kill_in_the_middle_of_a_round(lab: Platform, victims: list[str]) -> None:
    number = lab.submit(**CHOSEN)
    for at in (2, 4):
        lab.await_round(number, at)
        for victim in victims:
            if victim.startswith("workers of "):
                for worker in lab.workers(victim.removeprefix("workers of ")):
                    worker.kill()
            else:
                lab.kill(victim)
                lab.start(victim)
    assert lab.completed(number).digest == undisturbed(**CHOSEN)


# ---------------------------------------------------------------- codecs


def bytes_of_updates(lab: Platform, number: int) -> set[int]:
    """What the nodes' audit logs say of the sizes of a task's updates."""
    lines = [
        json.loads(line)
        for node in ("node-a", "node-b")
        for line in (lab.node_spool(node) / "audit.jsonl").read_text().splitlines()
    ]
    found = {line["bytes"] for line in lines if line.get("kind") == "localparam" and line.get("task") == number}
    assert found, lines[-1]
    return found


def test_int8_differences_give_what_one_process_gives_with_a_quarter_of_the_bytes(lab: Platform) -> None:
    number = lab.submit(**INT8)
    task = lab.completed(number)
    assert task.digest == undisturbed(**INT8)
    assert max(bytes_of_updates(lab, number)) < 0.26 * 4 * NUM_PARAMETERS


def test_residuals_survive_the_kill_of_their_node_in_the_middle_of_a_round(lab: Platform) -> None:
    number = lab.submit(**TOPK)
    lab.await_round(number, 2)
    lab.kill("node-a")
    lab.start("node-a")
    assert lab.completed(number).digest == undisturbed(**TOPK)
    assert max(bytes_of_updates(lab, number)) < 0.11 * 4 * NUM_PARAMETERS
    for node in ("node-a", "node-b"):
        lab.await_gone(lab.node_spool(node), "localparam/*")


def test_what_cannot_be_combined_is_refused_with_the_reason(lab: Platform) -> None:
    answer = lab.api.post("/tasks", json={"dataset": "digits", "transforms": ["topk"]})
    assert answer.status_code == 422
    assert "topk needs difference before it" in answer.text
