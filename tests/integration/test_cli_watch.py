from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Terminal, Web, serving

from fedsim.cli.api import ApiClient
from fedsim.cli.follow import PollFailure, Snapshot, follow
from fedsim.errors import Unavailable
from fedsim.store.records import TaskState


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path) as web:
        yield web


@pytest.fixture
def token(web: Web) -> str:
    return web.token("ada")


@pytest.fixture
def terminal(
    web: Web, token: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Terminal:
    monkeypatch.setattr("fedsim.cli.follow.LEAST_PAUSE_SECONDS", 0.01)
    terminal = Terminal(capsys, monkeypatch, tmp_path)
    terminal.use(web.url, token)
    return terminal


def advance_with_each_question(web: Web, rounds: int, ending: TaskState, reason: str = "") -> None:
    """The task waits, then each time that it is asked for it has one more round, then it ends."""
    task = web.site.task("ada", num_rounds=rounds)
    steps = iter(range(rounds + 2))

    def before(path: str) -> None:
        if path != f"/api/v1/tasks/{task.number}":
            return
        step = next(steps)
        if step == rounds + 1:
            web.finish(task, ending, reason)
        elif step:
            web.site.run_rounds(task, step, first=step)

    web.before = before


def test_each_change_is_one_line_and_the_end_is_reported(web: Web, terminal: Terminal) -> None:
    advance_with_each_question(web, 3, TaskState.COMPLETED)
    result = terminal.run("watch", 1)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "Task 1 pending: next in the queue"
    assert "round 1 of 3, accuracy 50.00%" in lines[1]
    assert "waits for" not in lines[1], "somebody is waited for in every round"
    assert "round 2 of 3" in lines[2]
    assert lines[-1] == "Task 1 completed (3 of 3 rounds, accuracy 70.00%, loss 0.6)"
    assert len(lines) == 5
    assert "fedsim download 1" in result.err


def test_a_line_says_for_whom_the_task_waits_once_that_is_late() -> None:
    record: dict[str, object] = {"phase": "training", "waiting_until": None, "stop_requested": False}
    assert not Snapshot(record).held_up
    assert not Snapshot({**record, "waiting_until": time.time() + 60}).held_up
    assert Snapshot({**record, "waiting_until": time.time() - 1}).held_up
    assert Snapshot({**record, "phase": "waiting"}).held_up


@pytest.mark.parametrize("ending", [TaskState.FAILED, TaskState.STOPPED])
def test_a_task_that_did_not_complete_exits_1_with_its_reason(web: Web, terminal: Terminal, ending: TaskState) -> None:
    advance_with_each_question(web, 2, ending, "because of this")
    result = terminal.run("watch", 1, "--json")
    assert result.code == 1
    assert result.document["task"]["state"] == ending.value
    assert f"Task 1 {ending.value}: because of this" in result.err


def test_watching_outlives_a_web_that_restarts(web: Web, token: str) -> None:
    task = web.site.task("ada", num_rounds=3)
    happens = iter((web.stop, web.start, lambda: web.site.run_rounds(task, 3), lambda: web.finish(task)))
    with ApiClient(web.url, token) as api:
        news = list(follow(api, task.number, give_up_seconds=60, wait=lambda _: next(happens)()))
    kinds = [item.state if isinstance(item, Snapshot) else "trouble" for item in news]
    assert kinds == ["pending", "trouble", "running", "completed"]
    assert isinstance(news[1], PollFailure)
    assert "cannot be reached" in news[1].text


def test_a_web_that_stays_away_is_given_up_on(web: Web, token: str) -> None:
    task = web.site.task("ada")
    seconds = iter(range(0, 1000, 40))
    with ApiClient(web.url, token) as api:
        news = follow(
            api, task.number, give_up_seconds=100, wait=lambda _: web.stop(), clock=lambda: float(next(seconds))
        )
        with pytest.raises(Unavailable):
            for _ in news:
                pass


def test_a_task_that_is_deleted_meanwhile_ends_the_watch(web: Web, terminal: Terminal) -> None:
    task = web.site.task("ada")
    asked = iter(range(10))

    def before(path: str) -> None:
        if path.startswith("/api/v1/tasks/") and next(asked) == 1:
            assert web.site.store.tasks.request_stop(task.number, web.site.now)
            web.site.store.tasks.delete(task.number)

    web.before = before
    assert terminal.run("watch", 1).code == 66


def test_on_a_terminal_a_bar_shows_round_accuracy_loss_and_time_left(
    web: Web, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    advance_with_each_question(web, 2, TaskState.COMPLETED)
    result = terminal.run("watch", 1)
    assert result.code == 0, result.err
    for text in ("round 1 of 2", "accuracy 50.00%", "loss 1.2", "about 7 s left", "waits for node-2"):
        assert text in result.out
    assert result.out.rstrip().endswith("Task 1 completed (2 of 2 rounds, accuracy 63.33%, loss 0.8)")


def test_ctrl_c_ends_watching_and_the_task_continues(
    web: Web, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = web.site.task("ada")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.cli.commands.watch.follow", interrupt)
    result = terminal.run("watch", task.number)
    assert result.code == 130
    assert "fedsim watch 1" in result.err
