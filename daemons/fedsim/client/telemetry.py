"""The log events and metrics of a running task on its node.

assigned, data_loaded, then for each round the training and the files that left the node; final_model_kept, ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from fedsim.messages import Assignment
from fedsim.metrics import NodeMetrics
from fedsim.runtime.telemetry import TaskTelemetry
from fedsim.spool.updates import UpdateIndex
from fedsim.update import Update, mean_metric
from fedsim.worker.jobs import ChunkTrained


class NodeTaskTelemetry(TaskTelemetry):
    """Logs the events of one task on a node and counts."""

    def __init__(self, assignment: Assignment, metrics: NodeMetrics) -> None:
        super().__init__(assignment.number, metrics)
        self._assignment = assignment
        self._metrics = metrics
        self._round = 0
        self._round_began = time.monotonic()
        self._untrained: set[int] = set()
        first = assignment.first_client
        self._clients = f"{first}-{first + assignment.num_clients - 1}"

    def started(self, version: str) -> None:
        """The task was assigned or is resumed; it was started under this version of fedsim."""
        settings = self._assignment.settings
        self.log.info(
            "task_assigned",
            task_uid=self._assignment.task,
            model=settings.model,
            dataset=settings.dataset,
            clients=self._clients,
            rounds=settings.num_rounds,
            version=version,
        )

    def loaded(self, num_examples: Iterable[tuple[int, int]]) -> None:
        """The task's data is in memory; `num_examples` as runs of (how many clients, examples of each)."""
        examples = sum(clients * size for clients, size in num_examples)
        dataset = self._assignment.settings.dataset
        self.log.info("data_loaded", dataset=dataset, clients=self._clients, examples=examples)

    def round_started(self, number: int, untrained: Iterable[int]) -> None:
        """A round's model has arrived, and these chunks are to be trained."""
        self._round, self._untrained = number, set(untrained)
        self._round_began = time.monotonic()
        self.publish_round(number)

    def trained(self, chunk: ChunkTrained, updates: UpdateIndex) -> None:
        """A chunk's updates are on disk; the last chunk completes the round."""
        self.log.debug("chunk_trained", round=chunk.round, chunk=chunk.chunk, seconds=round(chunk.seconds, 3))
        self._metrics.chunk_seconds.observe(chunk.seconds)
        if chunk.round != self._round:
            return
        self._untrained.discard(chunk.chunk)
        if not self._untrained:
            self._round_trained(updates.of_round(self._round))

    def _round_trained(self, updates: list[Update]) -> None:
        examples = sum(update.num_examples for update in updates)
        self._metrics.rounds.inc()
        self.log.info(
            "round_trained",
            round=self._round,
            chunks=len({update.chunk for update in updates}),
            examples=examples,
            train_loss=mean_metric(updates, "train_loss"),
            seconds=round(time.monotonic() - self._round_began, 3),
        )
