"""Presents tasks, rounds and other records for pages and the JSON API."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel

from fedsim.learning.metrics import Metric, MetricFormat
from fedsim.learning.objectives import metrics_of
from fedsim.learning.partitions import make_partitioner
from fedsim.settings import TaskSettings
from fedsim.store import Store
from fedsim.store.records import Event, Task, TaskState, User, UserRole, UserState
from fedsim.web.i18n import Text, duration, number, percent, tr

STATES: dict[TaskState, Text] = {
    TaskState.PENDING: tr("waiting"),
    TaskState.STARTING: tr("starting"),
    TaskState.RUNNING: tr("running"),
    TaskState.COMPLETED: tr("completed"),
    TaskState.FAILED: tr("failed"),
    TaskState.STOPPED: tr("stopped"),
}
USER_STATES: dict[UserState, Text] = {
    UserState.WAITING: tr("awaiting approval"),
    UserState.ACTIVE: tr("active"),
    UserState.DISABLED: tr("disabled"),
}
ROLES: dict[UserRole, Text] = {UserRole.USER: tr("user"), UserRole.ADMIN: tr("administrator")}
PHASES: dict[str, Text] = {
    "preparing": tr("preparing"),
    "training": tr("training"),
    "aggregating": tr("aggregating"),
    "closing": tr("closing"),
    "ended": tr("ended"),
    "waiting": tr("waiting"),
    "suspended: disk full": tr("suspended: disk full"),
    "suspended: database lost": tr("suspended: database lost"),
    "suspended: host trouble": tr("suspended: host trouble"),
    # The parts of a round whose durations the server records.
    "train": tr("training"),
    "aggregate": tr("aggregating"),
    "evaluate": tr("testing"),
    "all": tr("entire round"),
}


def phase_text(phase: str) -> Text:
    """The text of a phase; an unknown phase is shown as recorded."""
    return PHASES.get(phase) or tr("%(message)s", message=phase)


EVENTS: dict[str, Text] = {
    "submitted": tr("%(user)s submitted the task"),
    "stop_requested": tr("%(user)s asked the task to stop"),
    "delete_requested": tr("%(user)s asked for the task to be deleted"),
}


def event_text(event: Event) -> Text:
    """The text of an event: events of the web are translated, others are shown as recorded."""
    known = EVENTS.get(event.kind)
    return Text(known.msgid, {"user": event.user}) if known and event.user else tr("%(message)s", message=event.text)


def metric_label(metric: Metric) -> Text:
    """The metric's label; one without a translation is shown as its plug-in provides it."""
    return Text(metric.label, {})


def metric_value(metric: Metric, value: float | None) -> str:
    """A value of the metric in its format; a dash for None."""
    return percent(value) if metric.format is MetricFormat.SHARE else number(value)


@dataclass(frozen=True)
class TaskView:
    """A task with derived values for display."""

    task: Task
    state: Text
    phase: Text | None
    queue_position: int | None
    rounds_done: int

    @property
    def live(self) -> bool:
        """Whether the page should be refreshed automatically."""
        return not self.task.state.finished or self.task.delete_requested

    @property
    def summary(self) -> Text:
        """A summary in one sentence, for screen readers."""
        task = self.task
        if task.state is TaskState.PENDING:
            return tr("Task %(number)s: %(state)s", number=task.number, state=self.state)
        return tr(
            "Task %(number)s: %(state)s, round %(round)s of %(rounds)s, %(metric)s: %(value)s",
            number=task.number,
            state=self.state,
            round=task.round,
            rounds=task.settings.num_rounds,
            metric=metric_label(self.headline),
            value=self.result,
        )

    @property
    def headline(self) -> Metric:
        """The most important metric of the task."""
        return metrics_of(self.task.settings).headline

    @property
    def result(self) -> str:
        """The headline's value at the last test; a dash before the first."""
        return metric_value(self.headline, self.task.metrics.get(self.headline.name))

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of the last test, in order; before the first, only the headline."""
        found = metrics_of(self.task.settings)
        return found.in_order(self.task.metrics or [found.headline_name])

    @property
    def time_left(self) -> Text | None:
        """The estimated time left, if there is an estimate."""
        if self.task.state.finished or self.task.eta_seconds is None:
            return None
        return tr("about %(time)s left", time=duration(self.task.eta_seconds))


def task_view(store: Store, task: Task, newest_round: int | None = None) -> TaskView:
    """Create the view of a task. With `newest_round`, the newest recorded round, the number of rounds is exact."""
    pending = task.state is TaskState.PENDING
    working = task.phase in {"training", "aggregating"}  # then `task.round` is in progress
    return TaskView(
        task=task,
        state=STATES[task.state],
        phase=phase_text(task.phase) if task.phase and not task.state.finished else None,
        queue_position=store.tasks.queue_position(task.number) if pending else None,
        rounds_done=max(task.round - working, 0) if newest_round is None else newest_round,
    )


def plain(value: Any) -> Any:
    """Convert a record to JSON values: tuples to lists, enumerations to text, non-finite numbers to null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def planned_settings(task: Task) -> TaskSettings:
    """The settings with the number of clients that is planned: one for each node if the partition says so."""
    if not task.nodes or not make_partitioner(task.settings).per_node:
        return task.settings
    return task.settings.model_copy(update={"num_clients": len(task.nodes)})


def task_json(store: Store, task: Task) -> dict[str, Any]:
    """A task for the JSON API: the fields of its record, and derived values."""
    fields = {name: getattr(task, name) for name in Task.__dataclass_fields__}
    record: dict[str, Any] = plain(fields)
    metrics = metrics_of(task.settings)
    planned = planned_settings(task)
    return record | {
        "headline": metrics.headline_name,
        "metric_info": {
            metric.name: {
                "label": metric.label,
                "format": metric.format.value,
                "higher_is_better": metric.higher_is_better,
                "per_class": metric.per_class,
            }
            for metric in metrics.metrics
        },
        "num_clients": planned.num_clients,
        "cohort_size": planned.cohort_size,
        "queue_position": store.tasks.queue_position(task.number) if task.state is TaskState.PENDING else None,
        "url": f"/tasks/{task.number}",
    }


def user_json(user: User) -> dict[str, Any]:
    """A user for the JSON API, without the password's hash."""
    record: dict[str, Any] = plain(user)
    del record["password_hash"]
    return record
