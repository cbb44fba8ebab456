from __future__ import annotations

from typing import Any

import pytest

from fedsim.cli.api import TryAgain
from fedsim.cli.follow import LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS, PollFailure, Snapshot, follow
from fedsim.errors import Unavailable


def record(state: str = "running", *, round_number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "number": 1,
        "state": state,
        "reason": "",
        "round": round_number,
        "phase": "training",
        "metrics": {},
        "headline": "accuracy",
        "metric_info": {"accuracy": {"format": "share"}, "loss": {"format": "number"}},
        "eta_seconds": None,
        "waiting_for": [],
        "waiting_until": None,
        "queue_position": None,
        "stop_requested": False,
        "settings": {"num_rounds": 10},
        **fields,
    }


class Script:
    """Answers with one thing after another, and lets time pass only where it is waited for."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self._answers = iter(answers)
        self.now = 0.0
        self.pauses: list[float] = []

    def task(self, number: int) -> dict[str, Any]:
        assert number == 1
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def news(self, give_up_seconds: float = 60) -> list[Snapshot | PollFailure]:
        return list(follow(self, 1, give_up_seconds=give_up_seconds, wait=self.wait, clock=lambda: self.now))


def test_the_web_is_asked_less_often_while_nothing_changes() -> None:
    script = Script(*[record()] * 12, record(round_number=2), record("completed"))
    assert len(script.news()) == 3
    assert script.pauses[0] == LEAST_PAUSE_SECONDS == 0.5
    assert script.pauses[:12] == sorted(script.pauses[:12])
    assert script.pauses[11] == MOST_PAUSE_SECONDS
    assert script.pauses[12] == LEAST_PAUSE_SECONDS


def test_a_finished_task_is_asked_for_once() -> None:
    script = Script(record("failed"))
    assert [news.state for news in script.news() if isinstance(news, Snapshot)] == ["failed"]
    assert script.pauses == []


def test_a_first_answer_must_come() -> None:
    with pytest.raises(Unavailable):
        Script(Unavailable("away"), record("completed")).news()


def test_each_silence_has_its_own_time_limit() -> None:
    away = [Unavailable("away")] * 5
    script = Script(record(), *away, record(), *away, record("completed"))
    kinds = [type(news) for news in script.news(give_up_seconds=22)]
    assert kinds == [Snapshot, *[PollFailure] * 10, Snapshot]


def test_a_silence_that_lasts_is_not() -> None:
    with pytest.raises(Unavailable):
        Script(record(), *[Unavailable("away")] * 100).news(give_up_seconds=20)


def test_a_web_that_asks_for_patience_gets_it() -> None:
    script = Script(record(), TryAgain("later", 17.0), record("completed"))
    script.news()
    assert script.pauses == [0.5, 17.0]


@pytest.mark.parametrize(
    ("fields", "done"),
    [
        ({"round_number": 3}, 2),
        ({"round_number": 3, "phase": "aggregating"}, 2),
        ({"round_number": 3, "phase": "closing"}, 3),
        ({"round_number": 0, "phase": "preparing"}, 0),
        ({"state": "completed", "round_number": 10}, 10),
    ],
)
def test_a_round_counts_when_it_is_committed(fields: dict[str, Any], done: int) -> None:
    assert Snapshot(record(**fields)).rounds_done == done


def test_it_shows_for_whom_a_task_waits_and_that_it_will_stop() -> None:
    snapshot = Snapshot(record(waiting_for=["node-1", "node-2"], stop_requested=True))
    assert snapshot.activity == "training, waits for node-1, node-2, will be stopped"
    assert Snapshot(record("pending", queue_position=3)).activity == "position 3 in the queue"
