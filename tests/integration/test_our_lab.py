"""A lab's own models and formats on the platform: what works, and the effect of each kind of fault."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from lab_package import install_our_lab
from platform_support import DIGITS, Platform
from sklearn.datasets import load_digits

from fedsim.testing.local_cluster import NodeSpec


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("our_lab")
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_our_lab(folder / "installed", monkeypatch)
        images, labels = load_digits(return_X_y=True)
        data = folder / "data" / "mine"
        data.mkdir(parents=True)
        np.save(data / "features.npy", (images / 16).astype(np.float32))
        np.save(data / "labels.npy", labels.astype(np.int64))
        datasets = [
            DIGITS,
            {"name": "mine", "path": "mine", "share": True},
            *({"name": name, "path": "mine", "format": name} for name in ("raising", "killing")),
        ]
        node = NodeSpec("node-a", folder / "data", datasets, {"clients": 50, "announce_seconds": 2})
        with Platform(folder / "lab", [node], server={"node_timeout_seconds": 8}) as lab:
            yield lab


def test_an_installed_model_learns_from_a_data_set_of_an_installed_format(lab: Platform) -> None:
    number = lab.submit(model="narrow", dataset="mine", num_nodes=1, partition="iid", num_rounds=20, local_epochs=3)
    accuracy = lab.completed(number).metrics["accuracy"]
    assert accuracy is not None
    assert accuracy > 0.7


def test_what_cannot_be_offered_is_reported_and_costs_nothing_else(lab: Platform) -> None:
    hello = next(node.hello for node in lab.store.nodes.all() if node.name == "node-a")
    problems = "\n".join(hello["problems"])
    assert {dataset["name"] for dataset in hello["datasets"]} == {"digits", "mine"}
    assert "data set raising: ValueError: a row is upside down" in problems
    assert "data set killing: the worker that inspected it was killed by Killed (signal 9)" in problems
    assert "'a name with blanks' cannot be offered" in problems
    assert "narrow" in {model["name"] for model in hello["plugins"]["models"]}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("raising", "ValueError: seven is not a width"),
        ("double", "1.weight is torch.float64, 1.bias is torch.float64"),
        ("striking", "model striking on data set digits: RuntimeError: no more than two at a time"),
    ],
)
def test_a_faulty_model_fails_its_task_at_once_with_what_is_wrong(lab: Platform, model: str, reason: str) -> None:
    began = time.monotonic()
    task = lab.finish(lab.submit(model=model, num_nodes=1, num_rounds=1))
    assert task.state == "failed"
    assert f"model {model}" in task.reason
    assert reason in task.reason, "the server's worker or the node's, whichever is first"
    assert time.monotonic() - began < 30, "nothing is tried again that can only fail again"
    logs = "".join(process.log.read_text(encoding="utf-8") for process in lab.processes.values())
    assert "worker_died" not in logs
    if "Error: " in reason:
        assert "Traceback" in logs


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("missing", "the model missing (our_lab_that_is_gone:model) cannot be loaded: No module named"),
        ("torch_at_the_top", "cannot be loaded: our_lab_with_torch imports torch while it is itself imported"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_at_submission(lab: Platform, model: str, reason: str) -> None:
    answer = lab.api.post("/tasks", json={"model": model, "dataset": "digits"})
    assert answer.status_code == 422
    assert reason in answer.json()["problems"]["model"]
