"""The log events and metrics of a running task that server and node have in common."""

from __future__ import annotations

from fedsim.log import get_logger
from fedsim.metrics import TaskMetrics
from fedsim.wire.sender import Outcome


class TaskTelemetry:
    """Logs the events of one task and counts."""

    def __init__(self, number: int, metrics: TaskMetrics) -> None:
        self.log = get_logger(task=number)
        self._number = number
        self._task_metrics = metrics

    def publish_round(self, number: int) -> None:
        """The task is in this round."""
        self._task_metrics.task_round.labels(str(self._number)).set(number)

    def transfer_ended(self, outcome: Outcome) -> None:
        """A transfer has ended, delivered or not."""
        self._task_metrics.bytes_sent.labels(outcome.file_id.kind.value).inc(outcome.bytes_sent)

    def stopped(self) -> None:
        """The task does not run here any more: it is suspended or over."""
        self._task_metrics.task_ended(self._number)
