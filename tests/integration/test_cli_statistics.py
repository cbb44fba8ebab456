"""The command `fedsim` and a task that gathers statistics: submitted from a file, listed, watched and shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Terminal, Web, serving
from test_web_statistics import WORDS, answer_of

from fedsim.learning.pooled_statistics import pooled_statistics
from fedsim.store.records import TaskState


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path) as web:
        web.site.node()
        yield web


@pytest.fixture
def terminal(web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    terminal = Terminal(capsys, monkeypatch, tmp_path)
    terminal.use(web.url, web.token("ada"))
    return terminal


def test_a_file_becomes_a_task_whose_tables_are_shown(web: Web, terminal: Terminal) -> None:
    submitted = terminal.run("submit", "-", typed="kind: statistics\ndataset: mnist\npurpose: look\n")
    assert submitted.code == 0, submitted.err
    task = web.site.store.tasks.get(1)
    assert task is not None
    waiting = terminal.run("show", 1)
    assert "round" not in waiting.out
    assert "local_epochs" not in waiting.out, "settings of training are not those of this task"
    answers = {"node-a": answer_of(1, 400), "node-b": answer_of(2, 900, guarded=True), "node-c": 7}
    web.site.store.statistics.record(task.uid, pooled_statistics(answers, ("age",), WORDS))
    for state in (TaskState.STARTING, TaskState.RUNNING):
        web.finish(task, state)
    web.finish(task, reason="statistics of node-a, node-b")
    shown = terminal.run("show", 1)
    assert shown.code == 0, shown.err
    assert "Task 1 completed: statistics of node-a, node-b\n" in shown.out
    assert "examples: node-a 400, node-b about 900; numbers are based on at least 10 of a node" in shown.out
    assert "node-c does not count: it reported no valid statistics" in shown.out
    rows = {line.split()[0]: line.split() for line in shown.out.splitlines() if line.strip()}
    assert rows["age"][1:3] == ["1300", "0"]
    assert rows["healthy"][1:] == ["320", "720"]
    document = terminal.run("show", 1, "--json").document
    assert document["statistics"]["columns"][0]["name"] == "age"
    assert terminal.run("watch", 1).out.endswith("Task 1 completed: statistics of node-a, node-b\n")
    (row,) = (line.split() for line in terminal.run("tasks").out.splitlines() if "completed" in line)
    assert row[:6] == ["1", "–", "statistics", "mnist", "completed", "–"]


def test_a_setting_of_training_is_refused_by_its_name(terminal: Terminal) -> None:
    result = terminal.run("submit", "-", typed="kind: statistics\ndataset: mnist\nstrategy: median\n")
    assert result.code != 0
    assert "strategy" in result.err
    assert "does not apply to a task of the kind statistics" in result.err
