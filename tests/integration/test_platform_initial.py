"""Over two nodes: tasks that start from an earlier one's checkpoint, or from a file on the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_support import DIGITS, Platform, digits_lab, small_settings
from safetensors.numpy import load_file, save_file

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.spool.npy import hash_file


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("initial")) as lab:
        yield lab


def simulated(folder: Path, initial: Any, **chosen: Any) -> str:
    """The digest of the task in one process."""
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), folder)
    settings = small_settings(**chosen)
    return simulate(settings, dataset, chunk_clients=5, placement=[(0, 10), (10, 10)], initial=initial).digest


def test_a_task_starts_from_a_checkpoint_of_a_task_that_is_deleted_before_it_runs(
    lab: Platform, tmp_path: Path
) -> None:
    first = lab.submit(num_rounds=4, save_every=2)
    lab.completed(first)
    path = lab.server_spool / "checkpoints" / f"task-{first}" / "round-0002.safetensors"
    arrays, digest = load_file(path), hash_file(path)
    occupying = lab.submit(num_rounds=1000)
    lab.await_round(occupying, 1)
    chosen = {"num_rounds": 2, "model_seed": 5, "partition_seed": 6}
    number = lab.submit(initial=f"task {first}@2", **chosen)
    lab.await_row((lab.server_spool / "initial" / f"{digest}.safetensors").exists)
    assert lab.api.delete(f"/tasks/{first}").status_code == 202
    lab.await_row(lambda: lab.store.tasks.get(first) is None)
    assert not path.exists()
    lab.kill("server")
    lab.start("server")
    assert lab.api.post(f"/tasks/{occupying}/stop").status_code == 202
    assert lab.completed(number).digest == simulated(tmp_path, arrays, **chosen)
    about = json.loads(
        (lab.server_spool / "checkpoints" / f"task-{number}" / "round-0002.json").read_text(encoding="utf-8")
    )
    expected = {"source": "task", "task": first, "round": 2, "digest": digest}
    assert about["initial"] == expected
    shown = lab.api.get(f"/tasks/{number}").json()["task"]["initial"]
    assert {name: value for name, value in shown.items() if value is not None} == expected
    lab.await_gone(lab.server_spool, "initial/*")


def test_a_file_on_the_server_is_used_unless_it_changed_since_the_submission(lab: Platform, tmp_path: Path) -> None:
    first = lab.submit(num_rounds=1)
    lab.completed(first)
    arrays = load_file(lab.server_spool / "checkpoints" / f"task-{first}" / "round-0001.safetensors")
    lab.models.mkdir()
    save_file(arrays, lab.models / "base.safetensors")
    number = lab.submit(initial="file base", num_rounds=2)
    assert lab.completed(number).digest == simulated(tmp_path, lab.models / "base.safetensors", num_rounds=2)
    occupying = lab.submit(num_rounds=1000)
    lab.await_round(occupying, 1)
    number = lab.submit(initial="file base", num_rounds=2)
    save_file({name: array + 1 for name, array in arrays.items()}, lab.models / "base.safetensors")
    assert lab.api.post(f"/tasks/{occupying}/stop").status_code == 202
    failed = lab.finish(number)
    assert failed.state == "failed"
    assert "the file base.safetensors has changed since the task was submitted" in failed.reason
