"""Guarded data on the whole platform: each node divides its own examples, and keeps the division through restarts."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_support import DIGITS, Platform

from fedsim.testing.local_cluster import NodeSpec


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Platform]:
    data = tmp_path / "data"
    data.mkdir()
    settings = {"clients": 50, "announce_seconds": 1, "institution": {"max_tasks": 2}}
    dataset = {**DIGITS, "access": "guarded"}
    nodes = [NodeSpec(name, data, [dataset], settings) for name in ("node-a", "node-b")]
    with Platform(tmp_path / "lab", nodes, server={"node_timeout_seconds": 8}) as lab:
        yield lab


def test_guarded_data_is_trained_on_in_whole_blocks_again_after_a_restart_and_not_too_often(lab: Platform) -> None:
    settings = {"partition": "iid", "num_rounds": 2, "fraction_train": 1.0}
    first = lab.completed(lab.submit(**settings))
    assert "a task with guarded data can be repeated with the same nodes, not by simulate" in first.notes
    assert "node-b: its data is guarded: it formed the clients by a secret of its own" in first.notes
    rounds = lab.store.rounds.of_task(first.number)
    assert rounds[-1].metrics["accuracy"] is not None
    assert rounds[-1].num_examples % 100 == 0
    assert lab.store.nodes.all()[0].hello["datasets"][0]["num_train"] % 100 == 0
    divisions = [lab.node_spool(name) / "guarded" / "digits.npz" for name in ("node-a", "node-b")]
    kept = [path.read_bytes() for path in divisions]
    assert kept[0] != kept[1]
    assert {stat.S_IMODE(path.stat().st_mode) for path in divisions} == {0o600}

    lab.stop("node-a")
    lab.start("node-a")
    second = lab.completed(lab.submit(**settings))
    assert [path.read_bytes() for path in divisions] == kept
    assert second.digest == first.digest

    third = lab.finish(lab.submit(**settings))
    assert third.state == "failed"
    assert "takes 2 tasks a year on the guarded data set digits, and has taken 2 (max_tasks)" in third.reason
    lines = [json.loads(line) for line in (lab.node_spool("node-a") / "audit.jsonl").read_text().splitlines()]
    account = [(line["from"], line["user"], line["dataset"]) for line in lines if line["kind"] == "task"]
    assert account == [("server", "researcher", "digits")] * 2
