"""Owners approve tasks: they wait durably, hold no place among the running ones, and go on or end with the answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_support import DIGITS, Platform

from fedsim.client.owner_socket import PendingQuery, ask
from fedsim.spool.hash_chain import HashChain
from fedsim.store.records import Task
from fedsim.testing.local_cluster import NodeSpec

CLIENT = Path(sys.executable).with_name("fedsim-client")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("approval")
    data = folder / "data"
    data.mkdir()
    plain = {"clients": 50, "announce_seconds": 2}
    asking = {**plain, "owner_socket": str(folder / "owner.sock")}
    asked = {**DIGITS, "require_approval": True}
    nodes = [NodeSpec("node-a", data, [DIGITS], plain), NodeSpec("node-b", data, [asked], asking)]
    with Platform(folder / "lab", nodes, server={"node_timeout_seconds": 8, "max_running_tasks": 1}) as platform:
        yield platform


def owner(lab: Platform, *arguments: str) -> str:
    command = [CLIENT, "--config", lab.config("node-b"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def waiting_tasks(lab: Platform) -> set[int]:
    return {item["assignment"]["number"] for item in ask(lab.folder.parent / "owner.sock", PendingQuery())["pending"]}


def await_pending(lab: Platform, number: int) -> Task:
    def waits() -> Task | None:
        task = lab.task(number)
        assert not task.state.finished, task.reason
        return task if task.phase == "approval" and number in waiting_tasks(lab) else None

    return lab.await_row(waits)


def test_a_task_waits_for_an_owner_through_restarts_while_others_run(lab: Platform) -> None:
    number = lab.submit(num_nodes=2)
    task = await_pending(lab, number)
    assert task.waiting_for == ("the approval of node-b's owner",)
    assert task.waiting_until is not None
    assert lab.completed(lab.submit(nodes=["node-a"], num_nodes=1)).nodes == ("node-a",)

    (item,) = json.loads(owner(lab, "pending", "--json"))["pending"]
    assert item["assignment"]["user"] == "researcher"
    lab.kill("server")
    lab.kill("node-b")
    lab.start("server", "node-b")
    await_pending(lab, number)
    assert json.loads(owner(lab, "pending", "--json"))["pending"][0]["digest"] == item["digest"]
    assert f"Approved: task {number} of researcher on digits" in owner(lab, "approve", str(number))
    assert lab.completed(number).nodes == ("node-a", "node-b")
    assert "No task waits" in owner(lab, "pending")

    path = lab.node_spool("node-b") / "audit.jsonl"
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if line["task"] == number]
    assert [line["kind"] for line in lines[:2]] == ["approval", "task"]
    assert lines[0]["digest"] == lines[1]["digest"] == item["digest"]
    assert HashChain(path).open() == []


def test_an_owner_who_refuses_more_rounds_leaves_the_task_complete(lab: Platform) -> None:
    number = lab.submit(num_rounds=2)
    await_pending(lab, number)
    owner(lab, "approve", str(number))
    half = lab.completed(number)
    assert lab.api.post(f"/tasks/{number}/continue", json={"rounds": 2}).status_code == 202
    await_pending(lab, number)
    owner(lab, "refuse", str(number))
    refused = lab.completed(number)
    assert refused.reason == (
        "2 rounds done; it could not be continued: node node-b refused it: its owner does not approve it"
    )
    assert (refused.digest, refused.settings.num_rounds, refused.resume_round) == (half.digest, 2, 2)


def test_a_refused_task_does_without_the_node_or_fails_with_the_reason(lab: Platform) -> None:
    alone = lab.submit(num_nodes=0)
    await_pending(lab, alone)
    owner(lab, "refuse", str(alone), "--reason", "no ethics\nvote")
    done = lab.completed(alone)
    assert done.nodes == ("node-a",)
    assert done.left_out == {"node-b": "refused it: its owner does not approve it: no ethics vote"}

    both = lab.submit(num_nodes=2)
    await_pending(lab, both)
    owner(lab, "refuse", str(both))
    task = lab.finish(both)
    assert (task.state, task.reason) == ("failed", "node node-b refused it: its owner does not approve it")

    stopped = lab.submit(num_nodes=2)
    await_pending(lab, stopped)
    assert lab.api.post(f"/tasks/{stopped}/stop").status_code in {200, 202, 204}
    assert lab.finish(stopped).state == "stopped"
    lab.await_row(lambda: stopped not in waiting_tasks(lab), what="for the stop at the node")


def test_a_deadline_leaves_out_a_node_where_that_is_possible_else_the_task_waits_on(lab: Platform) -> None:
    days = 3 / 86_400
    path = lab.config("server")
    path.write_text(path.read_text() + f"approval_days: {days}\n")
    lab.stop("server")
    lab.start("server")
    both, alone = lab.submit(num_nodes=2), lab.submit(num_nodes=0)
    done = lab.completed(alone)
    assert done.nodes == ("node-a",)
    assert done.left_out["node-b"].startswith("does not have the approval of its owner, for which server.yml gives")
    await_pending(lab, both)
    owner(lab, "approve", str(both))
    lab.completed(both)


def test_a_task_that_was_stopped_and_is_resumed_waits_for_the_owner_again(lab: Platform) -> None:
    number = lab.submit(num_nodes=2, num_rounds=2000, evaluate_every=1000, save_every=1000)
    await_pending(lab, number)
    owner(lab, "approve", str(number))
    lab.await_round(number, 2)
    lab.api.post(f"/tasks/{number}/stop")
    assert lab.finish(number).state == "stopped"
    assert lab.api.post(f"/tasks/{number}/resume").is_success
    await_pending(lab, number)
    owner(lab, "approve", str(number))
    assert lab.await_round(number, 2).nodes == ("node-a", "node-b")
    lab.api.post(f"/tasks/{number}/stop")
    lab.finish(number)
