"""The log events and metrics of a running task on the server; `fedsim-client` logs its own part.

claimed, waits, started or resumed, then for each round committed and, where due, tested and saved; finished.
"""

from __future__ import annotations

from math import nan

from fedsim.metrics import ServerMetrics
from fedsim.runtime.telemetry import TaskTelemetry
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import Finish
from fedsim.store.records import RoundRecord
from fedsim.worker.jobs import CheckpointSaved


class ServerTaskTelemetry(TaskTelemetry):
    """Logs the events of one task on the server and counts."""

    def __init__(self, plan: Plan, metrics: ServerMetrics) -> None:
        super().__init__(plan.number, metrics)
        self._plan = plan
        self._metrics = metrics
        self._task = str(plan.number)

    def started(self, number: int, *, resumed: bool) -> None:
        """The task starts, or is resumed in round `number`."""
        settings = self._plan.settings
        self.log.info(
            "task_resumed" if resumed else "task_started",
            task_uid=self._plan.task,
            nodes=", ".join(self._plan.nodes),
            left_out="; ".join(f"{node} {why}" for node, why in self._plan.left_out) or None,
            round=number,
            rounds=settings.num_rounds,
            model=settings.model,
            dataset=settings.dataset,
            strategy=settings.strategy,
            clients=settings.num_clients,
            seed=settings.seed,
            version=self._plan.version,
        )

    def committed(self, record: RoundRecord) -> None:
        """A round is on disk."""
        self.log.info(
            "round_committed",
            round=record.round,
            **record.train_metrics,
            examples=record.num_examples,
            missing=len(record.missing),
            seconds=round(record.seconds["all"], 3),
            digest=record.digest[:16],
        )
        if record.round:
            self._metrics.rounds.inc()
            for phase, seconds in record.seconds.items():
                self._metrics.round_seconds.labels(phase).observe(seconds)

    def tested(self, record: RoundRecord) -> None:
        """A round's model was tested."""
        self.log.info("tested", round=record.round, **record.metrics)
        self._metrics.round_seconds.labels("evaluate").observe(record.seconds["evaluate"])
        for name, value in record.metrics.items():
            self._metrics.tested(self._task, name, nan if value is None else value)

    def nodes_tested(self, record: RoundRecord) -> None:
        """Nodes tested a round's model on their own data."""
        found = record.node_metrics
        withheld = [node for node, one in found["nodes"].items() if one["withheld"]]
        missing = ", ".join((*withheld, *found["missing"])) or None
        self.log.info("nodes_tested", round=record.round, nodes=len(found["nodes"]) - len(withheld), without=missing)

    def saved(self, saved: CheckpointSaved) -> None:
        """A checkpoint was saved."""
        self.log.info("checkpoint_saved", round=saved.round, digest=saved.digest, bytes=saved.size)
        self._metrics.checkpoints.inc()

    def finished(self, finish: Finish, number: int, *, headline: tuple[str, float | None], digest: str | None) -> None:
        """The task is over; round `number` was its last."""
        self.log.info(
            "task_finished",
            outcome=finish.outcome,
            reason=finish.reason,
            round=number,
            digest=digest,
            **dict([headline]),
        )
        self._metrics.ended.labels(finish.outcome).inc()
