"""Phases that an installed strategy adds to a task, over two nodes; one of them may not answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from lab_package import install_package
from platform_support import Platform, digits_lab

MODULE = '''
import os
import time

import psutil
from pydantic import Field

from fedsim.learning.phases import Phase, Position
from fedsim.learning.strategies.fedavg import FedAvg


class Statistics(Phase):
    name = "statistics"
    timeout_seconds = 3

    def __init__(self, required, silent):
        self.required = required
        self.silent = silent

    def ask(self, context):
        return {"silent": self.silent, "round": context.round}

    def answer(self, question, data):
        daemons = " ".join(part for parent in psutil.Process().parents() for part in parent.cmdline())
        if question["silent"] and question["silent"] + ".yml" in daemons:
            time.sleep(8)
        return {"count": len(data.train.labels), "sum": float(data.train.take(slice(None)).sum())}

    def summary(self, answers):
        count = sum(answer["count"] for answer in answers.values())
        total = sum(answer["sum"] for answer in answers.values())
        return f"mean {total / count:.3f} of {count} from {', '.join(answers)}"


class Check(Phase):
    name = "check"
    position = Position.WITHIN_ROUND

    def ask(self, context):
        known = {node: answer["count"] for node, answer in context.answers["statistics"].items()}
        return {"round": context.round, "known": known}

    def answer(self, question, data):
        return {"round": question["round"], "known": question["known"]}

    def summary(self, answers):
        return str(sorted(answers.items()))


class Release(Phase):
    name = "release"
    position = Position.AFTER_TRAINING

    def answer(self, question, data):
        return {"agreed": True}

    def summary(self, answers):
        return f"{len(answers)} agreed"


class WithPhases(FedAvg):
    """FedAvg that asks the nodes."""

    title = "With phases"

    class Options(FedAvg.Options):
        required: bool = Field(True, title="Required", description="Whether all must answer.")
        silent: str = Field("", title="Silent", description="The node that does not answer.")
        more: bool = Field(False, title="More", description="With further phases.")

    def __init__(self, options=None):
        super().__init__(options)
        statistics = Statistics(self.options.required, self.options.silent)
        self.phases = (statistics, Check(), Release()) if self.options.more else (statistics,)
'''
POINTS = """
[fedsim.strategies]
with_phases = phase_lab:WithPhases
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("phases")
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_package(folder / "installed", monkeypatch, "phase_lab", MODULE, POINTS)
        with digits_lab(folder / "lab") as lab:
            yield lab


def submit(lab: Platform, **options: object) -> int:
    return lab.submit(strategy="with_phases", strategy_options=options, num_rounds=2)


def said(lab: Platform, number: int, kind: str) -> list[str]:
    """The texts of a task's events of a kind, oldest first."""
    return [event.text for event in reversed(lab.store.events.newest(task=number)) if event.kind == kind]


def test_nodes_are_asked_before_within_and_after_the_training(lab: Platform) -> None:
    number = submit(lab, more=True)
    task = lab.completed(number)
    statistics, first, second, release = said(lab, number, "phase")
    count = int(statistics.split(" of ")[1].split()[0]) // 2
    assert statistics.endswith("from node-a, node-b")
    for round_number, text in ((1, first), (2, second)):
        answer = {"round": round_number, "known": {"node-a": count, "node-b": count}}
        assert text == f"check: {[('node-a', answer), ('node-b', answer)]}"
    assert release == "release: 2 agreed"
    assert task.digest == lab.completed(lab.submit(num_rounds=2)).digest, "the training is that of fedavg"
    log = (lab.node_spool("node-a") / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    left = [line for line in map(json.loads, log) if line["task"] == number and line["kind"] == "answer"]
    assert [(line["phase"], line["round"]) for line in left] == [
        ("statistics", 0),
        ("check", 1),
        ("check", 2),
        ("release", 2),
    ]
    for host in ("server", "node-a", "node-b"):
        lab.await_gone(lab.folder / host, "answer/*")
        lab.await_gone(lab.folder / host, "request/*")


def test_a_task_goes_on_without_a_node_that_need_not_answer(lab: Platform) -> None:
    number = submit(lab, required=False, silent="node-b")
    lab.completed(number)
    (missing,) = said(lab, number, "phase_incomplete")
    assert missing == "statistics: no answer within 3 s from node-b; the task goes on without"
    (summary,) = said(lab, number, "phase")
    assert summary.endswith("from node-a")


def test_a_task_fails_without_an_answer_that_it_requires(lab: Platform) -> None:
    task = lab.finish(submit(lab, silent="node-b"))
    assert task.state == "failed"
    assert task.reason == "statistics: no answer within 3 s from node-b"


def test_a_server_that_is_killed_in_a_phase_completes_it_afterwards(lab: Platform) -> None:
    number = submit(lab, required=False, silent="node-b", more=True)
    lab.await_row(lambda: lab.task(number).phase == "statistics" or None, what="for the phase")
    lab.kill("server")
    lab.start("server")
    lab.completed(number)
    assert len(said(lab, number, "phase")) == 4
