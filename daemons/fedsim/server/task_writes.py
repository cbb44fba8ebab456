"""What a task on the server reads and writes in the writer's thread: its start, its commits, its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from typing import Any

from fedsim.learning.aggregate import uplink_layout
from fedsim.learning.column_statistics import STATISTICS
from fedsim.learning.pooled_statistics import pooled_statistics
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import make_pipeline
from fedsim.log import get_logger
from fedsim.runtime.bulkhead import bulkhead
from fedsim.runtime.worker_versions import WorkerVersions
from fedsim.server.context import ServerContext
from fedsim.server.deliveries import Delivery
from fedsim.server.projection import TaskProjection, checkpoint_name
from fedsim.server.task_dir import TaskDir
from fedsim.server.task_jobs import TaskJobs
from fedsim.spool.allowlist import want
from fedsim.spool.clear import clear_file
from fedsim.spool.durable import remove_file
from fedsim.spool.files import Kind
from fedsim.spool.npy import open_vector
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import CompletePhase, Finish, Restored, Totals
from fedsim.state_machines.task_record import NO_TOTALS, UsedKey
from fedsim.store.records import Resumable, TaskState

NOT_KEPT = "the server keeps no states of completed tasks (retention.continue_tasks in server.yml)"


class TaskWrites:
    """The durable steps of one task. `versions` are known once the task was read."""

    versions: WorkerVersions

    def __init__(
        self, plan: Plan, context: ServerContext, folder: TaskDir, records: TaskProjection, task_jobs: TaskJobs
    ) -> None:
        self._plan = plan
        self._context = context
        self._folder = folder
        self._records = records
        self._jobs = task_jobs

    def create(self) -> Restored:
        """Fix a new task's plan."""
        self._folder.write_plan(self._plan)
        restored = self.read()
        schema, source = self._plan.data_schema, self._plan.schema_from
        if schema is not None and schema.kind == "table":
            self._records.event("schema", f"the order of columns and labels is that of {source}")()
        for node, why in self._plan.left_out:
            self._records.event("left_out", f"{node} takes no part: it {why}")()
        for note in self._plan.notes:
            self._records.event("note", note)()
        return restored

    def read(self) -> Restored:
        """Read what is stored of the task, and complete what a crash has interrupted."""
        tasks = self._context.store.tasks
        self._records.open()
        if committed := self._folder.committed():
            self._folder.check(committed[-1], self._records.files(committed[-1]))
        self.versions = WorkerVersions.open(self._folder.path, self._plan.version)
        restored = self._restored()
        if restored.counts is not None:  # a crash may have come between the counts and the row
            tasks.move(self._plan.task, TaskState.RUNNING, now=time.time())
        self._allow()
        return restored

    def record_counts(self, counts: tuple[int, ...]) -> None:
        """Fix the examples of each client: the task runs."""
        self._folder.write_counts(counts)
        self._context.store.tasks.move(self._plan.task, TaskState.RUNNING, now=time.time())

    def complete_phase(self, done: CompletePhase) -> None:
        """Record that an extension phase is complete, and clear its answers."""
        if done.phase == STATISTICS and not self._plan.settings.trains:
            # The row first: a crash between the two repeats the phase, and writes it again.
            schema = self._plan.data_schema
            answers = {node: json.loads(content) for node, content in done.answers}
            words = () if schema is None else schema.words(self._plan.model_spec.num_classes)
            found = pooled_statistics(answers, () if schema is None else schema.features, words)
            self._context.store.statistics.record(self._plan.task, found)
        self._folder.add_completed_phase(done)
        for item in self._context.spool.arrived(Kind.ANSWER, self._plan.task, done.round):
            if item.id.phase == done.phase:
                clear_file(item.path)

    def commit(self, number: int, content: dict[str, Any]) -> None:
        """Commit a round; `content` is that of its round.json."""
        self._folder.commit(number, content)
        if number == 0:
            self._allow()

    def end(self, finish: Finish, last: int, digest: str | None, promise: Callable[[], None]) -> bool:
        """Store what nodes have yet to receive and what can be resumed, then change the row; returns whether it did.

        Args:
            finish: how the task ends.
            last: the newest committed round.
            digest: of the final model's parameters, if the task is completed.
            promise: stores the stops; see `StopDeliveries.promise`.
        """
        plan = self._plan
        if finish.awaiting_final:
            released = last if finish.released is None else finish.released
            delivery = Delivery(
                task=plan.task,
                number=plan.number,
                round=last,
                digest=self._records.file_digest(released),
                nodes=finish.awaiting_final,
            )
            self._context.finals.keep(delivery, self._folder.model(released))
        promise()
        state, kept = TaskState(finish.outcome), Resumable(problem=NOT_KEPT)
        if state is not TaskState.COMPLETED or self._context.config.retention.continue_tasks:
            kept = self._context.kept.keep(plan.number, self._folder, completed=state is TaskState.COMPLETED)
        not_continued = state is TaskState.COMPLETED and last == plan.continued_after
        return self._context.store.tasks.move(
            plan.task,
            state,
            reason=finish.reason,
            now=time.time(),
            digest=digest,
            resumable=kept,
            num_rounds=last if not_continued else None,
            warning=finish.warning,
        )

    def remove_checkpoint(self, number: int, better: int) -> None:
        """Remove the checkpoint of a round that was the best one until the round `better`."""
        path = self._context.spool.checkpoints / checkpoint_name(self._plan.number, number)
        remove_file(path)
        remove_file(path.with_suffix(".json"))
        why = f"round {better} is better by {self._plan.settings.keep_best}"
        self._context.store.checkpoints.mark_removed(self._plan.number, number, why=why, now=time.time())

    def abandon(self, reason: str) -> None:
        """Record that the task failed, and keep its state if that is possible; called in the loop."""
        kept = Resumable(problem=reason)
        with bulkhead(lambda problem: get_logger(task=self._plan.number).warning("state_not_kept", problem=problem)):
            kept = self._context.kept.keep(self._plan.number, self._folder)
        self._context.store.tasks.move(
            self._plan.task, TaskState.FAILED, reason=reason, now=time.time(), resumable=kept
        )

    def _allow(self) -> None:
        """Let the receiver accept what the nodes are about to be asked for; updates as soon as there is a model."""
        plan = self._plan
        kinds: dict[Kind, Collection[str]] = {
            Kind.LOCALPARAM: plan.nodes,
            Kind.ANSWER: plan.nodes,
            Kind.METRICS: plan.nodes,
        }
        if plan.testset_from is not None:
            kinds[Kind.TESTSET] = (plan.testset_from,)
        committed = self._folder.committed()
        layout = None
        if committed:
            size = len(open_vector(self._folder.model(committed[-1])))
            strategy = make_strategy(plan.settings)
            pipeline = make_pipeline(plan.settings, strategy)
            layout = pipeline.layout(uplink_layout(strategy, size))
        want(self._context.spool, plan.task, kinds, layout=layout)

    def _restored(self) -> Restored:
        kept = self._folder.committed()
        committed = kept[-1] if kept else -1
        number = self._plan.number
        checkpoints = self._context.spool.checkpoints
        recorded = {checkpoint.round for checkpoint in self._context.store.checkpoints.of_task(number)}
        found = self._folder.read_roster(committed + 1)
        if found is not None:
            self._records.resume(committed + 1, found[1])
        return Restored(
            committed=committed,
            counts=self._folder.read_counts(),
            roster=None if found is None else found[0],
            kept=frozenset(kept),
            evaluated=frozenset(number for number in kept if self._records.is_tested(number)),
            saved=frozenset(
                saved
                for saved in recorded
                if (checkpoints / checkpoint_name(number, saved)).with_suffix(".json").exists()
            ),
            testset_parts=frozenset(item.id.part or "" for item in self._jobs.testset()),
            completed_phases=self._folder.completed_phases(),
            waited=self._folder.read_waited(committed + 1),
            losses=tuple(self._folder.record(committed).get("losses", ())) if kept else (),
            tests=self._records.tests(committed),
            node_tested=self._records.node_tested_rounds,
            used=self._used(committed) if kept else (),
            totals=Totals(**self._folder.record(committed).get("totals", {})) if kept else NO_TOTALS,
        )

    def _used(self, committed: int) -> tuple[UsedKey, ...]:
        """What asynchronous rounds have used, as stored with the newest one."""
        stored = self._folder.record(committed).get("used", ())
        return tuple((base_round, chunk, client) for base_round, chunk, client in stored)
