"""Follows a task through the API: polls less often while nothing changes, and retries while the web restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from fedsim.cli.output import duration, number, share
from fedsim.errors import Unavailable

LEAST_PAUSE_SECONDS = 0.5
MOST_PAUSE_SECONDS = 5.0
PAUSE_GROWTH = 1.5
# The names of the store's TaskState, whose import would load the database layer.
FINISHED = frozenset({"completed", "failed", "stopped"})
WORKING_PHASES = frozenset({"training", "aggregating"})


class TaskSource(Protocol):
    """A source of the state of tasks."""

    def task(self, number: int) -> dict[str, Any]:
        """Return the task as in the JSON API; raises `Unavailable` if there is no answer."""


def in_order(names: Iterable[str], task: dict[str, Any]) -> list[str]:
    """Sort names of metrics as in the task's description; others follow by name."""
    order = list(task["metric_info"])
    return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))


def metric_name(name: str) -> str:
    """A metric's name for display."""
    return name.replace("_", " ")


def metric_text(name: str, value: float | None, task: dict[str, Any]) -> str:
    """A metric's value in the format of the task's description."""
    return share(value) if task["metric_info"].get(name, {}).get("format") == "share" else number(value)


@dataclass(frozen=True)
class Snapshot:
    """The state of a task at one moment, from the API."""

    record: dict[str, Any]

    @property
    def number(self) -> int:
        """The task's number."""
        return int(self.record["number"])

    @property
    def state(self) -> str:
        """pending, starting, running, completed, failed or stopped."""
        return str(self.record["state"])

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINISHED

    @property
    def num_rounds(self) -> int:
        """The number of rounds in the settings."""
        return int(self.record["settings"]["num_rounds"])

    @property
    def trains(self) -> bool:
        """Whether a model is trained; a server of an older version names no other kind."""
        return bool(self.record["settings"].get("kind", "training") == "training")

    @property
    def course(self) -> str:
        """How far a running task has come: its round and metrics, if it has any."""
        return f"round {self.rounds_done} of {self.num_rounds}, {self.metrics}" if self.trains else ""

    @property
    def rounds_done(self) -> int:
        """The number of committed rounds."""
        current = int(self.record["round"])
        working = not self.finished and self.record["phase"] in WORKING_PHASES
        return max(current - 1, 0) if working else current

    @property
    def metrics(self) -> str:
        """The metrics of the latest test; before the first, only the headline."""
        names = in_order(self.record["metrics"], self.record) or [self.record["headline"]]
        return ", ".join(self._metric(name) for name in names)

    @property
    def headline(self) -> str:
        """The most important metric of the task."""
        return self._metric(self.record["headline"])

    @property
    def details(self) -> str:
        """The metrics of the latest test without the headline."""
        names = in_order(self.record["metrics"], self.record)
        return ", ".join(self._metric(name) for name in names if name != self.record["headline"])

    def _metric(self, name: str) -> str:
        return f"{metric_name(name)} {metric_text(name, self.record['metrics'].get(name), self.record)}"

    @property
    def time_left(self) -> str:
        """The server's estimate; empty if there is none."""
        eta = self.record["eta_seconds"]
        return "" if self.finished or eta is None else f"about {duration(eta)} left"

    @property
    def activity(self) -> str:
        """What the task is doing, and for which nodes it waits until when; empty when it has finished."""
        if self.finished:
            return ""
        if self.state == "pending":
            position = self.record["queue_position"]
            return (
                "next in the queue" if position == 1 else f"position {position} in the queue" if position else "waits"
            )
        text = self.record["phase"] or self.state
        if waiting := self.record["waiting_for"]:
            until = self.record["waiting_until"]
            text += f", waits for {', '.join(waiting)}"
            text += f" until {time.strftime('%H:%M:%S', time.localtime(until))}" if until else ""
        return text + (", will be stopped" if self.record["stop_requested"] else "")

    @property
    def held_up(self) -> bool:
        """Whether the task is not in normal progress: it is starting, ending or late."""
        until = self.record["waiting_until"]
        late = until is not None and time.time() > until
        return self.record["phase"] not in WORKING_PHASES or late or bool(self.record["stop_requested"])

    @property
    def outcome(self) -> str:
        """How the finished task ended, and why."""
        reason = f": {self.record['reason']}" if self.record["reason"] else ""
        if not self.trains:
            return f"Task {self.number} {self.state}{reason}"
        # The reason of a completed task already contains its rounds.
        rounds = "" if reason and self.state == "completed" else f"{self.record['round']} of {self.num_rounds} rounds, "
        return f"Task {self.number} {self.state}{reason} ({rounds}{self.metrics})"


@dataclass(frozen=True)
class PollFailure:
    """The web does not answer; the request will be repeated."""

    text: str


def follow(
    api: TaskSource,
    number: int,
    *,
    give_up_seconds: float,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Snapshot | PollFailure]:
    """Yield the task whenever it has changed, until it has finished.

    Args:
        api: the source of the task.
        number: the task's number.
        give_up_seconds: how long requests are repeated while the web does not answer; the first one is not repeated.
        wait: waits for a number of seconds. The API does not notify of changes, so it must be polled.
        clock: returns monotonic seconds.

    Raises:
        Unavailable: the web did not answer at first, or not for `give_up_seconds`.
    """
    seen: dict[str, Any] | None = None
    silent_since: float | None = None
    pause = LEAST_PAUSE_SECONDS
    while True:
        asked_to_wait = 0.0
        try:
            record = api.task(number)
        except Unavailable as error:
            if silent_since is None:
                silent_since = clock()
            if seen is None or clock() - silent_since >= give_up_seconds:
                raise
            asked_to_wait = min(getattr(error, "retry_after", None) or 0.0, give_up_seconds)
            yield PollFailure(str(error))
            pause = min(pause * PAUSE_GROWTH, MOST_PAUSE_SECONDS)
        else:
            silent_since = None
            pause = LEAST_PAUSE_SECONDS if record != seen else min(pause * PAUSE_GROWTH, MOST_PAUSE_SECONDS)
            if record != seen:
                seen = record
                yield (snapshot := Snapshot(record))
                if snapshot.finished:
                    return
        wait(max(pause, asked_to_wait))
