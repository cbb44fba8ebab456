"""Presents tasks, rounds and other records for pages and the JSON API."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel

from fedsim.learning.column_statistics import STATISTICS
from fedsim.learning.metrics import Metric, MetricFormat
from fedsim.learning.objectives import metrics_of
from fedsim.learning.partitions import make_partitioner
from fedsim.settings import TaskSettings
from fedsim.store import Store
from fedsim.store.records import Event, RoundRecord, Task, TaskState, User, UserRole, UserState
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
    "evaluating": tr("testing"),
    STATISTICS: tr("gathering statistics"),
    "closing": tr("closing"),
    "ended": tr("ended"),
    "waiting": tr("waiting"),
    "approval": tr("awaiting approval"),
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
    "resume_requested": tr("%(user)s resumed the task"),
    "continue_requested": tr("%(user)s continued the task for further rounds"),
    "continued_off_schedule": tr(
        "%(user)s continued the task for further rounds; its learning rates depend on the number of rounds, "
        "so its model will differ from that of a task with all these rounds"
    ),
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
        if task.state is TaskState.PENDING or not task.settings.trains:
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
        """The headline's value at the last test; a dash before the first, and of a task that trains nothing."""
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
    return _task_view(task, _positions(store, [task]), newest_round)


def task_views(store: Store, tasks: Sequence[Task]) -> list[TaskView]:
    """Create the views of several tasks."""
    positions = _positions(store, tasks)
    return [_task_view(task, positions) for task in tasks]


def _positions(store: Store, tasks: Iterable[Task]) -> dict[int, int]:
    """Positions in the queue, in one query, if one of the tasks is pending."""
    return store.tasks.queue_positions() if any(task.state is TaskState.PENDING for task in tasks) else {}


def _task_view(task: Task, positions: Mapping[int, int], newest_round: int | None = None) -> TaskView:
    working = task.phase in {"training", "aggregating"}  # then `task.round` is in progress
    return TaskView(
        task=task,
        state=STATES[task.state],
        phase=phase_text(task.phase) if task.phase and not task.state.finished else None,
        queue_position=positions.get(task.number),
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


@dataclass(frozen=True)
class ScreenedNode:
    """A node's updates in the newest round that was screened, and how many were outside in the rounds shown.

    `figures`: (name, least, largest) of each figure of these updates.
    """

    node: str
    updates: int
    figures: tuple[tuple[str, str, str], ...]
    outside: int
    excluded: int
    reason: str


def screened_nodes(newest_first: Sequence[RoundRecord]) -> tuple[int, list[ScreenedNode]] | None:
    """The newest round that was screened and its nodes, for the task's page; None if none of these rounds was."""
    newest = next((record for record in newest_first if record.screening), None)
    if newest is None:
        return None
    nodes = []
    for node in sorted({found["node"] or "" for found in newest.screening}):
        here = [found for found in newest.screening if found["node"] == node]
        of_node = [found for record in newest_first for found in record.screening if found["node"] == node]
        reasons = [found["outside"] for found in (*here, *of_node) if found["outside"]]
        nodes.append(
            ScreenedNode(
                node=node,
                updates=len(here),
                figures=tuple(_range(name, here) for name in here[0]["figures"]),
                outside=sum(bool(found["outside"]) for found in of_node),
                excluded=sum(found["excluded"] for found in of_node),
                reason=reasons[0] if reasons else "",
            )
        )
    return newest.round, nodes


def node_tests(newest_first: Sequence[RoundRecord]) -> tuple[int, dict[str, Any]] | None:
    """The newest of these rounds that nodes tested on their own data, and its tests; None if there is none."""
    newest = next((record for record in newest_first if record.node_metrics), None)
    return None if newest is None else (newest.round, newest.node_metrics)


def estimate_text(metric: Metric, estimate: Sequence[float | None] | None) -> str:
    """A value of the metric with its confidence interval, if there is one."""
    value, low, high = estimate or (None, None, None)
    shown = metric_value(metric, value)
    return shown if low is None else f"{shown} ({metric_value(metric, low)} – {metric_value(metric, high)})"


def _range(name: str, found: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    values = [value for one in found if (value := one["figures"].get(name)) is not None]
    return (name, f"{min(values):.3g}", f"{max(values):.3g}") if values else (name, "–", "–")


FIGURES: dict[str, Text] = {
    "norm": tr("Norm"),
    "norm_ratio": tr("Norm / median"),
    "cosine": tr("Cosine to the others"),
}


def figure_text(name: str) -> Text:
    """The label of a screening's figure; one of another package is shown by its name."""
    return FIGURES.get(name) or tr("%(message)s", message=name)


def planned_settings(task: Task) -> TaskSettings:
    """The settings with the number of clients that is planned: one for each node if the partition says so."""
    if not task.nodes or not make_partitioner(task.settings).per_node:
        return task.settings
    return task.settings.model_copy(update={"num_clients": len(task.nodes)})


def task_json(store: Store, task: Task) -> dict[str, Any]:
    """A task for the JSON API: the fields of its record, and derived values."""
    return tasks_json(store, [task])[0]


def tasks_json(store: Store, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Several tasks for the JSON API."""
    positions = _positions(store, tasks)
    return [_task_json(task, positions) for task in tasks]


def _task_json(task: Task, positions: Mapping[int, int]) -> dict[str, Any]:
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
                "by_prediction": metric.by_prediction,
            }
            for metric in metrics.metrics
        },
        "num_clients": planned.num_clients,
        "cohort_size": planned.cohort_size,
        "queue_position": positions.get(task.number),
        "url": f"/tasks/{task.number}",
    }


def user_json(user: User) -> dict[str, Any]:
    """A user for the JSON API, without the password's hash and the secret of the second factor."""
    record: dict[str, Any] = plain(user)
    del record["password_hash"], record["totp_secret"], record["openid_key"]
    return record | {"second_factor": user.totp_secret is not None}
