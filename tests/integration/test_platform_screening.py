"""Screening over three nodes, one of which sends a scaled model: it is excluded by name, the run can be replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_package import install_package
from platform_support import DIGITS, Platform, small_settings

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.testing.local_cluster import NodeSpec

MODULE = '''
import numpy as np

from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.plugins import PluginOptions


class Scaling(SequentialEngine):
    """Sends models that are thirty times as far from the global one."""

    title = "scaling"

    def start(self, *args):
        self.inner = super().start(*args)
        return self

    def train(self, clients, round_number, global_vector, **kwargs):
        for update in self.inner.train(clients, round_number, global_vector, **kwargs):
            parameters = global_vector + np.float32(30) * (update.arrays["parameters"] - global_vector)
            yield update.with_arrays({**update.arrays, "parameters": parameters})
'''
CHOSEN = {"screening": "exclude", "num_nodes": 3, "num_clients": 12, "fraction_train": 1.0, "num_rounds": 4}
MISSING = {str(number): [8, 9, 10, 11] for number in range(1, 5)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("screening")
    data = folder / "data"
    data.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        install_package(folder, patch, "scaling", MODULE, "[fedsim.engines]\nscaling = scaling:Scaling\n")
        plain: dict[str, Any] = {"clients": 50, "announce_seconds": 2}
        settings = {"node-a": plain, "node-b": plain, "node-c": {**plain, "engine": "scaling"}}
        nodes = [NodeSpec(name, data, [DIGITS], of_node) for name, of_node in settings.items()]
        with Platform(folder / "lab", nodes, server={"node_timeout_seconds": 8}) as platform:
            yield platform


def expected(folder: Path, **changes: Any) -> str:
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), folder)
    settings = small_settings(**CHOSEN, **changes)
    return simulate(settings, dataset, chunk_clients=4, placement=[(0, 4), (4, 4), (8, 4)], missing=MISSING).digest


@pytest.mark.parametrize("aggregation", ["", pytest.param("median", marks=pytest.mark.long)])
def test_a_node_that_sends_a_scaled_model_is_excluded_by_name(lab: Platform, tmp_path: Path, aggregation: str) -> None:
    number = lab.submit(**CHOSEN, aggregation=aggregation)
    lab.await_round(number, 2)
    lab.kill("server")
    lab.start("server")
    task = lab.completed(number, seconds=300)
    assert task.digest == expected(tmp_path, aggregation=aggregation)

    counts = task.participation
    assert {node: counts[node]["missing"] for node in counts} == {"node-a": 0, "node-b": 0, "node-c": 16}
    rounds = lab.api.get(f"/tasks/{number}/rounds").json()["rounds"]
    updates = 12 if aggregation else 3
    assert [len(record["screening"]) for record in rounds] == [0, *[updates] * 4]
    for record in rounds[1:]:
        assert {found["node"] for found in record["screening"] if found["excluded"]} == {"node-c"}
        assert record["missing"] == [8, 9, 10, 11]
    events = lab.api.get(f"/tasks/{number}/events").json()["events"]
    texts = [event["text"] for event in events if event["kind"] == "screening"]
    assert len(texts) >= 3
    assert all("leaves out the update of " in text and "of node node-c: its norm is " in text for text in texts)
    journal = lab.processes["server"].log.read_text()
    assert "of node node-c: its norm is " in journal

    about = json.loads((lab.server_spool / "checkpoints" / f"task-{number}" / "round-0004.json").read_text())
    assert about["missing"] == MISSING
    assert {found["node"] for past in about["excluded"].values() for found in past} == {"node-c"}
    assert list(about["excluded"]) == ["1", "2", "3", "4"]
