from __future__ import annotations

import csv
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import Terminal, Web, serving

from fedsim.cli import api
from fedsim.initial import InitialModel
from fedsim.store.records import Resumable, TaskState


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


def test_a_yaml_file_becomes_a_task_whose_address_is_reported(web: Web, terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "task.yml"
    file.write_text("title: 2026-01-01\nnum_rounds: 3\nlocal_learning_rate: 1e-2\n", encoding="utf-8")
    result = terminal.run("submit", file)
    assert result.code == 0, result.err
    assert f"Task 1 is submitted: {web.url}/tasks/1" in result.out
    task = web.site.store.tasks.get(1)
    assert task is not None
    assert (task.settings.title, task.settings.num_rounds) == ("2026-01-01", 3)
    assert task.settings.local_learning_rate == 0.01
    assert ("submitted", 1) in web.site.notifier.notifications


def test_a_submission_whose_answer_is_lost_is_sent_again_and_is_one_task(web: Web, terminal: Terminal) -> None:
    app, lost = web.site.app, []

    def losing(environ: dict[str, Any], start_response: Any) -> Any:
        answer = app(environ, start_response)
        if environ["REQUEST_METHOD"] == "POST" and not lost:
            lost.append(environ["HTTP_IDEMPOTENCY_KEY"])
            environ["wsgi.input"].raw._sock.shutdown(socket.SHUT_RDWR)
        return answer

    web.site.app = losing  # type: ignore[assignment] # any WSGI application will do
    result = terminal.run("submit", "-", typed="num_rounds: 7")
    assert result.code == 0, result.err
    assert "Task 1 is submitted" in result.out
    assert len(lost) == 1
    assert len(web.site.store.tasks.newest()) == 1


def test_the_original_platforms_json_is_taken_and_what_is_ignored_is_reported(terminal: Terminal) -> None:
    typed = '{"modelname": "mnist_cnn", "num_comm": 7, "cfraction": 0.2, "iid": 1, "save_path": "/tmp"}'
    result = terminal.run("submit", "-", "--json", typed=typed)
    assert result.code == 0, result.err
    settings = result.document["task"]["settings"]
    assert (settings["model"], settings["num_rounds"], settings["partition"]) == ("cnn", 7, "iid")
    assert any("save_path is ignored" in note for note in result.document["notes"])
    assert "save_path is ignored" in result.err


def test_set_replaces_a_setting_under_whichever_name_the_file_has_it(web: Web, terminal: Terminal) -> None:
    result = terminal.run("submit", "-", "--set", "num_rounds=9", "--set", "epoch=2", typed="num_comm: 7\nepoch: 1\n")
    assert result.code == 0, result.err
    task = web.site.store.tasks.get(1)
    assert task is not None
    assert (task.settings.num_rounds, task.settings.local_epochs) == (9, 2)


def test_every_problem_is_reported_beside_its_field(web: Web, terminal: Terminal) -> None:
    typed = "num_rounds: 0\nfraction_train: 2\ncolour: red\n"
    result = terminal.run("submit", "-", typed=typed)
    assert result.code == 65
    for field in ("num_rounds", "fraction_train", "colour"):
        assert f"\n  {field}: " in result.err
    assert result.out == ""
    assert web.site.store.tasks.newest() == []
    result = terminal.run("submit", "-", "--json", typed=typed)
    assert result.code == 65
    assert set(result.document["problems"]) == {"num_rounds", "fraction_train", "colour"}
    assert result.document["exit_code"] == 65


def test_a_file_that_is_not_there_exits_66_and_one_that_is_no_yaml_65(terminal: Terminal, tmp_path: Path) -> None:
    assert terminal.run("submit", tmp_path / "none.yml").code == 66
    result = terminal.run("submit", "-", typed="num_rounds: [1\n")
    assert result.code == 65
    assert "line 2" in result.err


def test_tasks_are_listed_page_after_page(web: Web, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAGE_SIZE", 2)
    for number in range(5):
        web.site.task("ada", title=f"run {number}")
    listed = terminal.run("tasks", "--all", "--json").document["tasks"]
    assert [task["number"] for task in listed] == [5, 4, 3, 2, 1]
    assert len(terminal.run("tasks", "--limit", "3", "--json").document["tasks"]) == 3
    table = terminal.run("tasks").out
    assert "run 4" in table
    assert "pending" in table


def test_a_title_cannot_take_hold_of_the_terminal(web: Web, terminal: Terminal) -> None:
    web.site.task("ada", title="\x1b]0;mine\x07\x1b[31mred")
    for command in (("tasks",), ("show", 1)):
        result = terminal.run(*command)
        assert result.code == 0, result.err
        assert "red" in result.out
        assert "\x1b" not in result.out


def test_only_an_administrator_sees_everybodys_tasks(web: Web, terminal: Terminal) -> None:
    web.site.task("ada")
    assert terminal.run("tasks", "--everybody").code == 77
    terminal.use(web.url, web.token("root", admin=True))
    assert "ada" in terminal.run("tasks", "--everybody").out


def test_show_prints_settings_state_rounds_and_checkpoints(web: Web, terminal: Terminal) -> None:
    task = web.site.task("ada", num_rounds=4, title="a title")
    web.site.run_rounds(task, 3)
    checkpoint = web.save_checkpoint(task, 3, b"model")
    result = terminal.run("show", 1)
    assert result.code == 0, result.err
    for text in ("a title", "running, round 3 of 4", "waits for node-2", "num_clients", checkpoint.digest):
        assert text in result.out
    document = terminal.run("show", 1, "--json").document
    assert len(document["rounds"]) == 4
    assert document["checkpoints"][0]["digest"] == checkpoint.digest


def test_a_warning_the_best_round_and_tests_on_nodes_are_shown(web: Web, terminal: Terminal) -> None:
    task = web.site.task("ada", num_rounds=2)
    nodes = {
        "node-1": {"num_examples": 80, "withheld": "", "metrics": {"accuracy": [0.9, 0.85, 0.95]}},
        "node-2": {"num_examples": 0, "withheld": "no held-out examples", "metrics": {}},
    }
    found = {
        "nodes": nodes,
        "missing": ["node-3"],
        "mean": {"accuracy": [0.9, None, None]},
        "worst": {"accuracy": ["node-1", 0.9]},
    }
    one = {"num_clients": 5, "num_examples": 300, "loss": 0.5, "client_norm": None, "norm": 2.0}
    apart = {"node": "node-1", "distance": 1.5, "cosine": 0.625}
    contributed = {"norm": 2.0, "nodes": {"node-1": {**one, **apart}}, "clients": {"7": {**one, **apart}}}
    web.site.run_rounds(task, 2, node_metrics=found, missing=(3,), missing_share=0.25, contributions=contributed)
    web.site.store.tasks.set_best(task.uid, {"round": 2, "metric": "accuracy", "value": 0.875})
    assert web.site.store.tasks.move(task.uid, TaskState.COMPLETED, now=web.site.now, warning="a third was missing")
    shown = terminal.run("show", 1).out
    for text in ("WARNING: a third was missing", "best round so far by accuracy: 2", "no held-out examples", "worst"):
        assert text in shown
    assert "did not report" in shown
    assert "client 7 of node-1" in shown
    assert all(figure in shown for figure in ("0.75", "0.625")), "drift and cosine"
    assert "WARNING" in terminal.run("tasks").out
    assert "WARNING: a third was missing" in terminal.run("watch", 1).out
    assert "25" in terminal.run("rounds", 1).out


def test_rounds_come_as_table_csv_or_json(web: Web, terminal: Terminal) -> None:
    task = web.site.task("ada", num_rounds=4)
    assert "no rounds yet" in terminal.run("rounds", 1).err
    web.site.run_rounds(task, 2, missing=(3, 4))
    rows = list(csv.DictReader(io.StringIO(terminal.run("rounds", 1, "--csv").out)))
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    assert rows[2]["missing"] == "3 4"
    assert 6.1 in [float(value) for name, value in rows[2].items() if name.startswith("seconds_")]
    assert len([name for name in rows[0] if name.startswith("recall_")]) == 10
    assert len(terminal.run("rounds", 1, "--json").document["rounds"]) == 3
    assert "2 of 10" in terminal.run("rounds", 1).out
    assert terminal.run("rounds", 1, "--json", "--csv").code == 64


def test_a_waiting_task_is_stopped_at_once_and_a_finished_one_cannot_be(web: Web, terminal: Terminal) -> None:
    web.site.task("ada")
    assert "was stopped" in terminal.run("stop", 1).out
    result = terminal.run("stop", 1)
    assert result.code == 65
    assert "already finished" in result.err


def test_a_running_task_is_asked_to_stop(web: Web, terminal: Terminal) -> None:
    web.site.run_rounds(web.site.task("ada"), 1)
    result = terminal.run("stop", 1, "--json")
    assert result.code == 0
    assert result.document["task"]["stop_requested"] is True
    assert ("stop", 1) in web.site.notifier.notifications


def test_a_stopped_task_is_resumed(web: Web, terminal: Terminal) -> None:
    task = web.site.task("ada")
    web.site.run_rounds(task, 2)
    assert "nothing to resume" in terminal.run("resume", 1).err
    kept = Resumable(uid="b" * 32, round=2)
    web.site.store.tasks.move(task.uid, TaskState.STOPPED, now=web.site.now, resumable=kept)
    result = terminal.run("resume", 1)
    assert (result.code, "continues after round 2" in result.out) == (0, True)
    assert ("submitted", 1) in web.site.notifier.notifications
    assert terminal.run("resume", 1).code == 65


def test_a_completed_task_gets_more_rounds(web: Web, terminal: Terminal) -> None:
    task = web.site.task("ada", num_rounds=2)
    web.site.run_rounds(task, 2)
    assert "has not finished" in terminal.run("continue", 1, "--rounds", 3).err
    kept = Resumable(uid="b" * 32, round=2)
    web.site.store.tasks.move(task.uid, TaskState.COMPLETED, now=web.site.now, resumable=kept)
    assert terminal.run("continue", 1).code == 64, "how many?"
    result = terminal.run("continue", 1, "--rounds", 3, "--json")
    assert result.code == 0, result.err
    assert result.document["task"]["settings"]["num_rounds"] == 5
    assert ("submitted", 1) in web.site.notifier.notifications
    assert terminal.run("continue", 1, "--rounds", 3).code == 65


def test_what_a_task_starts_from_is_shown(web: Web, terminal: Terminal) -> None:
    task = web.site.task("ada", num_rounds=2)
    initial = InitialModel(source="task", task=task.number, round=2, digest="c" * 64)
    web.site.store.tasks.create(task.user_id, task.settings, "d" * 32, web.site.now, initial=initial)
    assert f"starts from round 2 of task 1, digest {'c' * 64}" in terminal.run("show", 2).out
    assert "starts from" not in terminal.run("show", 1).out
    refused = terminal.run("rerun", 1, "--set", "initial=task 9")
    assert (refused.code, "initial: there is no task 9" in refused.err) == (65, True), refused.err


def test_deleting_asks_first(web: Web, terminal: Terminal) -> None:
    web.site.task("ada")
    terminal.run("stop", 1)
    assert terminal.run("delete", 1, typed="n\n").code == 130
    assert terminal.run("delete", 1, typed="").code == 130
    assert web.site.store.tasks.to_delete() == []
    assert terminal.run("delete", 1, typed="y\n").code == 0
    assert [task.number for task in web.site.store.tasks.to_delete()] == [1]


def test_a_task_runs_again_with_changes(web: Web, terminal: Terminal) -> None:
    web.site.task("ada", num_rounds=4, seed=7)
    result = terminal.run("rerun", 1, "--set", "learning_rate=0.5", "--json")
    assert result.code == 0, result.err
    settings = result.document["task"]["settings"]
    assert (settings["num_rounds"], settings["seed"], settings["local_learning_rate"]) == (4, 7, 0.5)
    assert result.document["task"]["repeats"] == 1, "so that the server takes its plan where it fits"
    assert terminal.run("rerun", 1, "--set", "num_rounds").code == 64


def test_missing_tasks_and_those_of_another_user_exit_66(web: Web, terminal: Terminal) -> None:
    web.token("bob")
    web.site.task("bob")
    for command in (("show", 1), ("watch", 1), ("stop", 1), ("rounds", 99), ("download", 99), ("rerun", 99)):
        result = terminal.run(*command)
        assert (command, result.code) == (command, 66)
        assert f"Task {command[1]}: " in result.err


def test_nodes_and_options_are_listed(terminal: Terminal) -> None:
    assert "node-1" in terminal.run("nodes").out
    assert terminal.run("nodes", "--json").document["nodes"][0]["online"] is True
    options = terminal.run("options").out
    for text in ("2nn", "mnist: 60000 examples", "fraction_train", "fedavg, fedavgm", "strategy_options.mu"):
        assert text in options
    assert terminal.run("options", "--json").document["defaults"]["num_clients"] == 100


def test_a_watched_submission_ends_as_the_task_does(
    web: Web, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.cli.follow.LEAST_PAUSE_SECONDS", 0.01)

    def move_on(path: str) -> None:
        task = web.site.store.tasks.get(1)
        if path == "/api/v1/tasks/1" and task is not None:
            if task.state is TaskState.PENDING:
                web.site.run_rounds(task, 1)
            else:
                web.finish(task, TaskState.FAILED, "diverged in round 2")

    web.before = move_on
    result = terminal.run("submit", "-", "--watch", "--json", typed="num_rounds: 3")
    assert result.code == 1
    assert result.document["task"]["state"] == "failed"
    assert "diverged in round 2" in result.err


def test_the_partition_is_shown_before_and_after_submission(web: Web, terminal: Terminal) -> None:
    result = terminal.run("partition", "--set", "num_clients=4", "--set", "partition=shards")
    assert result.code != 0
    assert "do not show how many examples have each label" in result.err
    web.site.now += 1
    web.site.node(num_train=2000, label_counts=(200,) * 10)
    settings = ("--set", "num_clients=4", "--set", "partition=shards")
    result = terminal.run("partition", *settings)
    assert result.code == 0, result.err
    assert result.out.count("| 500") == 4
    assert terminal.run("submit", "-", typed="{num_clients: 4, partition: shards}").code == 0
    shown = terminal.run("partition", "--task", "1", "--json")
    assert [sum(row) for row in json.loads(shown.out)["counts"]] == [500] * 4
    assert terminal.run("partition", "--task", "1", *settings).code == 64


def test_data_on_this_machine_is_divided_without_the_web(tmp_path: Path, terminal: Terminal) -> None:
    terminal.use("http://127.0.0.1:9", "nothing answers there")
    data, picture, table = tmp_path / "data.csv", tmp_path / "picture.svg", tmp_path / "clients.csv"
    data.write_text("x,y\n" + "".join(f"{row},{int(row % 3 > 0)}\n" for row in range(60)), encoding="utf-8")
    options = ("--data", data, "--label-column", "y", "--set", "num_clients=3", "--set", "partition=quantity")
    result = terminal.run("partition", *options, "--svg", picture, "--csv", table)
    assert result.code == 0, result.err
    assert "labels: 0, 1" in result.out
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [sum(int(row[f"label_{name}"]) for row in rows) for name in "01"] == [20, 40]
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    again = terminal.run("partition", *options, "--svg", picture)
    assert "already exists" in again.err
    bad = terminal.run("partition", "--data", data, "--label-column", "y", "--set", "num_clients=99")
    assert "99 clients are too many for 60 training examples" in bad.err
