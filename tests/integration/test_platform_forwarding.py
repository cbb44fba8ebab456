"""A task whose global models travel from node to node ends with the same bytes as one whose models do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from platform_support import DIGITS, Platform, small_settings

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.testing.local_cluster import NodeSpec

NODES = ("node-a", "node-b", "node-c", "node-d")
CONSENT = {"forwarding": {"accept": True, "pass_on": True}}
WIDE: dict[str, Any] = {
    "model": "mlp",
    "model_options": {"hidden": [3000, 400]},  # 5.6 MB
    "num_clients": 8,
    "fraction_train": 1.0,
    "num_rounds": 4,
    "evaluate_every": 4,
    "save_every": 4,
    "num_nodes": 4,
}


def lab_of(folder: Path, **consents: dict[str, Any]) -> Platform:
    data = folder / "data"
    data.mkdir(parents=True)
    nodes = [NodeSpec(name, data, [DIGITS], {"clients": 50, **consents.get(name, CONSENT)}) for name in NODES]
    return Platform(folder, nodes, server={"forwarding": True})


def lines_with(lab: Platform, event: str, *names: str) -> list[str]:
    logs = [lab.processes[name].log for name in names]
    return [line for log in logs for line in log.read_text(encoding="utf-8").splitlines() if event in line]


def simulated(**settings: Any) -> str:
    """The digest of the same task in one process."""
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), Path())
    placement = [(first, 2) for first in range(0, 8, 2)]
    return simulate(small_settings(**settings), dataset, chunk_clients=2, placement=placement).digest


def test_models_travel_along_nodes_whose_owners_allow_it_and_the_result_is_the_same(tmp_path: Path) -> None:
    with lab_of(tmp_path / "lab", **{"node-b": {}}) as lab:
        task = lab.completed(lab.submit(**WIDE), seconds=200)
        lab.await_log("server", "model_forwarded")
        forwarded = lines_with(lab, "model_forwarded", "server")
        passed_on = lines_with(lab, "model_passed_on", *(f"{name}-receiver" for name in NODES))
        said = [lab.processes[f"{name}-receiver"].log.read_text(encoding="utf-8") for name in NODES]
        behind = lines_with(lab, "model_not_forwarded", "server")
    assert task.digest == simulated(**WIDE)
    assert "nodes=3" in forwarded[0]
    assert len(passed_on) >= 2
    assert not behind
    assert [name for name in ("node-a", "node-c", "node-d") if name in said[1]] == [], "node-b learns of no other node"
    assert "node-d" not in said[0], "node-a passes on to node-c, and learns of no other node"


@pytest.mark.long
@pytest.mark.timeout(400)
def test_processes_that_are_killed_while_models_travel_change_no_byte(tmp_path: Path) -> None:
    longer = WIDE | {"local_epochs": 5, "num_rounds": 7, "evaluate_every": 7, "save_every": 7}
    with lab_of(tmp_path / "lab") as lab:
        number = lab.submit(**longer)
        for at, victim in ((3, "node-b-receiver"), (4, "server"), (5, "node-c-receiver"), (6, "receiver")):
            lab.await_round(number, at)
            lab.kill(victim)
            lab.start(victim)
        task = lab.completed(number, seconds=300)
        assert lines_with(lab, "model_passed_on", *(f"{name}-receiver" for name in NODES))
    assert task.digest == simulated(**longer)
