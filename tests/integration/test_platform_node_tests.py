"""Over two nodes: models tested where the data is, tasks that a condition ends, the best model; also with kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_support import DIGITS, Platform, small_settings

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import SimulationResult, simulate
from fedsim.testing.local_cluster import NodeSpec

HELD_OUT: dict[str, Any] = {**DIGITS, "share": False, "validation_share": 0.2, "access": "open"}
ON_NODES: dict[str, Any] = {"evaluation": "nodes", "num_rounds": 4, "local_epochs": 20}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("node-tests")
    data = folder / "data"
    data.mkdir()
    settings = {"clients": 50, "announce_seconds": 2}
    open_handed = {**settings, "institution": {"client_figures": True}}
    chosen = {"node-a": open_handed, "node-b": settings}
    nodes = [NodeSpec(name, data, [HELD_OUT], own) for name, own in chosen.items()]
    with Platform(folder, nodes, server={"node_timeout_seconds": 8}) as lab:
        yield lab


def simulated(**settings: Any) -> SimulationResult:
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(HELD_OUT), Path())
    return simulate(small_settings(**settings), dataset, chunk_clients=5, placement=[(0, 10), (10, 10)])


@pytest.fixture(scope="module")
def calm(lab: Platform) -> dict[int, dict[str, Any]]:
    """The tests on the nodes' own data in a task to which nothing happens."""
    number = lab.submit(**ON_NODES)
    task = lab.completed(number)
    assert task.digest == simulated(**ON_NODES).digest
    return {record.round: record.node_metrics for record in lab.store.rounds.of_task(number) if record.node_metrics}


def test_nodes_report_what_one_process_computes(lab: Platform, calm: dict[int, dict[str, Any]]) -> None:
    assert set(calm) == {0, 2, 4}
    expected = simulated(**ON_NODES)
    for number, found in calm.items():
        assert found["missing"] == ()
        here = found["nodes"]["node-a"]
        there = expected.rounds[number].node_metrics["nodes"]["0"]
        assert here["num_examples"] == there["num_examples"]
        for name, estimate in there["metrics"].items():
            assert here["metrics"][name] == [estimate.value, estimate.low, estimate.high], name
        assert set(found["mean"]) == set(here["metrics"])
    shown = lab.api.get(f"/tasks/{lab.store.tasks.newest()[0].number}/rounds").json()["rounds"]
    assert shown[-1]["node_metrics"]["worst"]["accuracy"][0] in {"node-a", "node-b"}
    for node in ("node-a", "node-b"):
        left = (lab.node_spool(node) / "audit.jsonl").read_text()
        assert '"metrics"' in left
        assert '"testset"' not in left
        lab.await_gone(lab.node_spool(node), "evaluate/*")


@pytest.mark.parametrize("victim", ["node-b", pytest.param("server", marks=pytest.mark.long)])
def test_a_kill_in_the_middle_changes_no_number(lab: Platform, calm: dict[int, dict[str, Any]], victim: str) -> None:
    number = lab.submit(**ON_NODES)
    for at in (1, 3):
        lab.await_round(number, at)
        lab.kill(victim)
        lab.start(victim)
    lab.completed(number)
    found = {record.round: record.node_metrics for record in lab.store.rounds.of_task(number) if record.node_metrics}
    assert found == calm


def test_each_clients_own_model_is_tested_over_a_kill_of_a_node(lab: Platform) -> None:
    chosen: dict[str, Any] = {
        **ON_NODES,
        "strategy": "fedper",
        "partition": "labels_per_client",
        "partition_options": {"labels": 2},
        "evaluate_every": 1,
        "num_rounds": 4,
        "local_epochs": 6,
    }
    number = lab.submit(**chosen)
    lab.await_round(number, 2)
    lab.kill("node-a")
    lab.start("node-a")
    expected = simulated(**chosen)
    assert lab.completed(number).digest == expected.digest
    found = {record.round: record.node_metrics for record in lab.store.rounds.of_task(number)}
    for result in expected.rounds:
        assert found[result.round]["missing"] in ((), [])
        for node, first in (("node-a", "0"), ("node-b", "10")):
            here, there = found[result.round]["nodes"][node], result.node_metrics["nodes"][first]
            assert here["num_examples"] == there["num_examples"]
            values = {name: [one.value, one.low, one.high] for name, one in there["metrics"].items()}
            assert here["metrics"] == values
    contributed = {record.round: record.contributions for record in lab.store.rounds.of_task(number)}
    for result in expected.rounds[1:]:
        recorded, computed = contributed[result.round], result.contributions
        for node, first in (("node-a", "0"), ("node-b", "10")):
            assert recorded["nodes"][node] == {**computed.nodes[first].model_dump(), "node": node}
        allowed = {str(client): one for client, one in computed.clients.items() if client < 10}
        assert recorded["clients"] == {
            client: {**one.model_dump(), "node": "node-a"} for client, one in allowed.items()
        }, "the institution of node-b lets those of no client leave"


def test_a_condition_ends_a_task_with_the_best_model_as_its_final_one(lab: Platform) -> None:
    chosen: dict[str, Any] = {
        "evaluation": "nodes",
        "num_rounds": 20,
        "evaluate_every": 1,
        "keep_best": "accuracy",
        "final_model": "best",
        "stop_when": "accuracy >= 0.5",
    }
    number = lab.submit(**chosen)
    task = lab.completed(number)
    expected = simulated(**chosen)
    assert expected.best is not None
    last = expected.rounds[-1]
    assert task.round == last.round < 20
    assert f"{last.round} of 20 rounds done: accuracy is " in task.reason
    assert task.best["round"] == expected.best[0]
    assert task.digest == expected.rounds[expected.best[0]].digest
    assert lab.api.post(f"/tasks/{number}/continue", json={"rounds": 1}).status_code == 202
    longer = lab.completed(number)
    assert longer.round == last.round + 1
    assert longer.settings.num_rounds == last.round + 1
