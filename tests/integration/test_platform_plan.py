"""A node measures once how it trains quickest: two submissions get one plan, also after restarts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_support import Platform, digits_lab

from fedsim.client.speed_table import FILE, read_speeds

AUTO = {"engine": "auto", "workers": "auto", "threads_per_worker": "auto", "warm_worker": True}
CLIENT = Path(sys.executable).with_name("fedsim-client")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("plan"), nodes=1, client=AUTO) as lab:
        yield lab


def run(lab: Platform, **changes: Any) -> tuple[str | None, dict[str, Any]]:
    """The final digest of a task, and how its node trained."""
    number = lab.submit(num_nodes=1, num_rounds=1, **changes)
    task = lab.completed(number)
    (path,) = (lab.server_spool / "checkpoints" / f"task-{number}").glob("*.json")
    (share,) = json.loads(path.read_text())["nodes"]
    return task.digest, {name: share[name] for name in ("engine", "workers", "chunk_clients", "num_clients")}


def measurements(lab: Platform) -> int:
    return lab.processes["node-a"].log.read_text().count("speed_measured")


def test_two_submissions_get_one_plan_also_after_a_restart(lab: Platform) -> None:
    lab.await_log("node-a", "workers_warm")
    first = run(lab)
    assert measurements(lab) == 1
    assert first[1]["workers"] is not None
    table = read_speeds(lab.node_spool("node-a") / FILE)
    assert table is not None
    (found,) = (one.speed for one in table.measured)
    assert (found.engine, found.threads, found.workers) == (
        first[1]["engine"]["name"],
        first[1]["engine"]["threads"],
        first[1]["workers"],
    )
    assert run(lab, title="again") == first
    lab.stop("node-a")
    lab.start("node-a")
    assert run(lab) == first
    assert measurements(lab) == 1, "a restart measures nothing again"


def test_a_task_run_again_takes_the_recorded_plan_or_says_why_not(lab: Platform) -> None:
    number = lab.submit(num_nodes=1, num_rounds=1)
    first = lab.completed(number)
    lab.stop("node-a")
    command = [CLIENT, "--config", lab.config("node-a"), "speeds", "--json"]
    (listed,) = json.loads(subprocess.check_output(command))["speeds"]
    renewed = json.loads(subprocess.check_output([*command, "--renew", listed["speed"]["key"][:8]]))
    assert renewed["removed"] == [listed]
    lab.start("node-a")

    # The owner wants to measure anew, which the task that is run again with its plan does not need.
    def again(**changes: Any) -> int:
        settings = {**lab.api.get(f"/tasks/{number}").json()["task"]["settings"], **changes}
        answer = lab.api.post("/tasks", params={"repeats": number}, json=settings)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["task"]["number"])

    same, other = again(), again(num_clients=10)
    task = lab.completed(same)
    assert (task.digest, task.repeats) == (first.digest, number)
    assert task.notes == (f"it has the plan of task {number}",)
    plan = lab.api.get(f"/tasks/{same}/plan").json()["plan"]
    assert plan == lab.api.get(f"/tasks/{number}/plan").json()["plan"]
    assert lab.completed(other).notes == (f"not comparable with task {number}: it had 20 clients, this one has 10",)
    assert lab.api.post("/tasks", params={"repeats": 99}, json={}).status_code == 404
