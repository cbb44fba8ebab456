"""One running task on a node: passes events to its state machine and carries out the actions that it returns.

Nothing is decided here; see `fedsim.state_machines.node`.
"""

from __future__ import annotations

import time
from pathlib import Path

from fedsim.client.audit_log import TaskAudit
from fedsim.client.context import NodeContext
from fedsim.client.telemetry import NodeTaskTelemetry
from fedsim.config import DataSetConfig
from fedsim.errors import BadInput
from fedsim.messages import Assignment, Broadcast, Chunk, TaskReport, Uplink, read_message
from fedsim.runtime.driver import TaskDriver, contained
from fedsim.runtime.event_file import EventFile
from fedsim.runtime.worker_versions import WorkerVersions
from fedsim.spool.allowlist import want
from fedsim.spool.clear import clear_file, clear_task
from fedsim.spool.client_states import settle_states
from fedsim.spool.durable import make_folder, remove_file
from fedsim.spool.files import FileId, Kind
from fedsim.spool.updates import UpdateIndex, file_id
from fedsim.state_machines import node as events
from fedsim.update import Update
from fedsim.wire.sender import Outcome, Status
from fedsim.worker import jobs
from fedsim.worker.pool import WorkerPool


class NodeTask(TaskDriver[events.Event, events.Action]):
    """A task from its `initparam` to its end on this node."""

    def __init__(self, assignment: Assignment, context: NodeContext) -> None:
        """Make the driver; `start` reads what is stored of the task."""
        self.assignment = assignment
        self.uid = assignment.task
        self.suspended = False
        self._context = context
        self._folder = context.spool.folder(Kind.LOCALPARAM) / self.uid
        self._events = EventFile(self._folder)
        self._audit = TaskAudit(context.audit_log, assignment, context.server.name)
        self._telemetry = NodeTaskTelemetry(assignment, context.metrics)
        self._versions: WorkerVersions | None = None
        self._machine = events.NodeMachine(assignment, ())
        super().__init__(self._telemetry)

    def _restore(self) -> WorkerVersions:
        """Read what is stored of the task, once."""
        if self._versions is None:
            self._updates = UpdateIndex(self._folder)
            settle_states(self._folder, self._updates)
            self._record_unacknowledged()
            newest = self._newest_global()
            self._machine = events.NodeMachine(self.assignment, self._trained(*newest) if newest is not None else ())
            self._versions = WorkerVersions.open(self._folder)
        return self._versions

    # ------------------------------------------------------------ its life

    @property
    def ended(self) -> bool:
        """Whether the task is over on this node."""
        return self._machine.ended

    @property
    def report(self) -> TaskReport:
        """What the node's announcements report of the task."""
        if self.abandoned:
            return TaskReport(
                task=self.uid, state="failed", reason="an internal error of fedsim; see the node's journal"
            )
        versions = {} if self._versions is None else self._versions.hosts
        return self._machine.report.model_copy(update={"versions": tuple(versions.get(self._context.config.name, ()))})

    @property
    def status(self) -> str:
        """For `systemctl status`."""
        return f"task {self.assignment.number}: {self.report.state}, round {self._machine.round}"

    @contained
    def start(self, refusal: str | None) -> None:
        """Start, or resume from what is stored; `refusal` is why the institution forbids the task."""
        self._telemetry.started(self._restore().version)
        if refusal is not None:
            self.dispatch(events.Failed(refusal, refused=True))
            return
        want(self._context.spool, self.uid, {Kind.GLOBALPARAM: None})
        self.carry_out_all(self._begin())
        self.scan_globals()

    @contained
    def scan_globals(self) -> None:
        """Process the newest global model, if one was received."""
        newest = self._newest_global()
        if newest is not None:
            before = self._machine.round
            self.dispatch(events.GlobalArrived(*newest))
            if self._machine.round != before:
                number, broadcast = newest
                trained = {chunk for _, chunk in self._trained(number, broadcast)}
                self._telemetry.round_started(number, {chunk.id for chunk in broadcast.chunks} - trained)

    @contained
    def stop(self, reason: str) -> None:
        """The server ended the task; a final model that was received before is processed first."""
        self._restore()
        self.scan_globals()
        self._log.info("task_stopped", reason=reason)
        self.dispatch(events.Stopped())

    def suspend(self) -> None:
        """End workers and transfers without ending the task: another object resumes it later.

        Until then it is announced, and a stop ends it; what was being computed is computed again.
        """
        self.suspended = True
        self.end_workers()
        self._telemetry.stopped()
        self._context.outbox.cancel(lambda file: file.task == self.uid)

    @contained
    def transfer_ended(self, outcome: Outcome) -> None:
        """A transfer of this task has ended."""
        file = outcome.file_id
        self._telemetry.transfer_ended(outcome)
        if outcome.delivered:
            self._audit.record_delivered(outcome)
            if file.kind is Kind.TESTSET:
                clear_file(self._context.spool.path(file, self._context.config.name))
        elif outcome.status is Status.REFUSED:
            self.dispatch(events.Failed(f"the server refused the {file.kind}: {outcome.message}"))

    @contained
    def workers_ready(self) -> None:
        """Process the replies and deaths of workers, and let idle ones train."""
        super().workers_ready()
        if self._pool is not None:
            self.dispatch(events.WorkersIdle(self._pool.idle))

    def worker_replied(self, reply: jobs.Reply) -> None:
        """Tell the state machine what a worker has done."""
        match reply:
            case jobs.DataLoaded():
                if self.report.state == "loading":
                    self._telemetry.loaded(reply.num_examples)
                self.dispatch(events.Loaded(reply.num_examples))
            case jobs.Done():
                self._send_testset()
            case jobs.ChunkTrained():
                self._updates.add(reply.updates)
                self._telemetry.trained(reply, self._updates)
                self.dispatch(events.Trained(reply.round, reply.chunk))
            case jobs.ClientDiverged():
                self.dispatch(events.TrainingDiverged(reply.round, reply.client))
            case jobs.CheckpointSaved():
                self._log.info("final_model_kept", digest=reply.digest)
                self._prune_models()
                self.dispatch(events.FinalKept())
            case jobs.JobFailed():
                self.dispatch(events.Failed(reply.reason, refused=reply.refused, round=reply.round))

    # ------------------------------------------------------------ carrying out

    def handle(self, event: events.Event) -> list[events.Action]:
        """See TaskDriver."""
        machine = self._machine
        return self._events.record(event, time.monotonic(), lambda: machine.handle(event), lambda: machine.phase)

    def _begin(self) -> list[events.Action]:
        machine = self._machine
        started = events.NodeTaskStarted(self.assignment, tuple(sorted(machine.trained)))
        return self._events.record(started, time.monotonic(), machine.begin, lambda: machine.phase)

    def fail(self, reason: str) -> None:
        """Report the failure; the server ends the task."""
        self.dispatch(events.Failed(reason))

    def carry_out(self, action: events.Action) -> None:
        """See TaskDriver."""
        match action:
            case events.LoadData():
                self._load()
            case events.Report():
                report = self.report
                if report.reason:
                    self._log.warning("task_given_up", state=report.state, problem=report.reason)
                self._context.announce()
            case events.SendTestset():
                data, labels = (
                    self._context.spool.path(file, self._context.config.name) for file in self._testset_files()
                )
                make_folder(data.parent)
                self.submit(jobs.WriteTestset(data=data, labels=labels))
            case events.TrainChunk(number, chunk):
                model = self._global_path(number)
                self.submit(
                    jobs.Train(round=number, chunk=chunk.id, clients=chunk.clients, model=model, out=self._folder)
                )
            case events.SendUpdates(number, chunk_id):
                for update in self._updates.of_chunk(number, chunk_id):
                    self._send_update(update)
            case events.ClearUsedUpdates(through):

                def used(file: FileId) -> bool:
                    return file.kind is Kind.LOCALPARAM and (file.round or 0) <= through

                self._context.outbox.cancel(lambda file: file.task == self.uid and used(file))
                self._updates.clear(through)
                self._audit.record_dropped(used)
            case events.ClearGlobals(before):
                for item in self._context.spool.arrived(Kind.GLOBALPARAM, self.uid):
                    if item.id.round is not None and item.id.round < before:
                        clear_file(item.path)
            case events.KeepFinal(number):
                self._keep_final(number)
            case events.EndWorkers():
                self.end_workers()
                self._telemetry.stopped()
            case events.End():
                self.suspend()
                self._events.keep(self._context.config.spool / "events", f"task-{self.assignment.number:06d}")
                clear_task(self._context.spool, self.uid)
                self._audit.record_dropped(lambda _: True)
                self._log.info("task_ended", round=self._machine.round)
                self._context.announce()

    def _record_unacknowledged(self) -> None:
        """Files that are found when a task is resumed may have been sent before."""
        for update in self._updates.all():
            self._audit.record_sent(file_id(update, self.uid), update.size, update.num_examples)
        for file in self._testset_files():
            path = self._context.spool.path(file, self._context.config.name)
            if path.exists():
                self._audit.record_sent(file, path.stat().st_size)

    def record_versions(self) -> None:
        """Record the versions of the task's workers, and log those that the task was not started under."""
        versions = self._restore()
        for version in versions.record(self._context.config.name, self._pool.versions if self._pool else ()):
            problem = f"{versions.version}, which the task was started under here, is not installed (any more)"
            self._log.warning("other_version", version=version, problem=problem)

    def _load(self) -> None:
        config = self._context.config
        dataset = self._dataset()
        if dataset is None:
            self.dispatch(events.Failed(f"there is no data set {self.assignment.settings.dataset} here"))
            return
        first = jobs.Load(
            assignment=self.assignment,
            dataset=dataset,
            folder=config.data,
            min_examples=config.institution.min_examples,
        )
        self._pool = WorkerPool(
            [str(number) for number in range(config.workers)],
            self._context.fork_servers,
            self.workers_ready,
            threads=self.assignment.engine.threads,
            max_restarts=config.max_worker_restarts,
            log={"task": self.assignment.number, "node": config.name},
            version=self._restore().version,
            on_death=self._context.metrics.worker_restarts.inc,
            first=first,
        )
        self.record_versions()

    def _send_update(self, update: Update) -> None:
        file = file_id(update, self.uid)
        self._audit.record_sent(file, update.size, update.num_examples)
        meta = update.model_dump(mode="json", exclude_defaults=True)
        path = self._updates.path(update)
        self._context.outbox.send(self._context.server, file, path, meta=meta, digest=update.digest)

    def _send_testset(self) -> None:
        for file in self._testset_files():
            path = self._context.spool.path(file, self._context.config.name)
            self._audit.record_sent(file, path.stat().st_size)
            self._context.outbox.send(self._context.server, file, path)

    def _testset_files(self) -> tuple[FileId, FileId]:
        return (
            FileId(kind=Kind.TESTSET, task=self.uid, part="data"),
            FileId(kind=Kind.TESTSET, task=self.uid, part="label"),
        )

    def _keep_final(self, number: int) -> None:
        assignment = self.assignment
        made_in = FileId(kind=Kind.GLOBALPARAM, task=self.uid, round=number).made_in
        self.submit(
            jobs.SaveCheckpoint(
                settings=assignment.settings,
                feature_shape=assignment.feature_shape,
                num_classes=assignment.num_classes,
                round=made_in,
                model=self._global_path(number),
                out=self._models() / f"task-{assignment.number:06d}.safetensors",
                about={
                    "task": assignment.number,
                    "uid": assignment.task,
                    "round": made_in,
                    "settings": assignment.settings.model_dump(mode="json"),
                },
            )
        )

    def _prune_models(self) -> None:
        """The final models of the newest tasks stay."""
        models = sorted(self._models().glob("task-*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in models[: -self._context.config.keep_models]:
            remove_file(path)
            remove_file(path.with_suffix(".json"))
            self._log.info("old_model_removed", file=path.name)

    # ------------------------------------------------------------ what is stored where

    def _models(self) -> Path:
        return self._context.config.spool / "checkpoints"

    def _dataset(self) -> DataSetConfig | None:
        wanted = self.assignment.settings.dataset
        return next((dataset for dataset in self._context.config.datasets if dataset.name == wanted), None)

    def _global_path(self, number: int) -> Path:
        return self._context.spool.path(FileId(kind=Kind.GLOBALPARAM, task=self.uid, round=number), "")

    def _newest_global(self) -> tuple[int, Broadcast] | None:
        """The newest global model that was received, and its metadata."""
        for item in reversed(self._context.spool.arrived(Kind.GLOBALPARAM, self.uid)):
            try:
                metadata = item.metadata()
                return item.id.round or 0, read_message(Broadcast, metadata.meta, f"metadata of {item.path.name}")
            except BadInput as error:
                self._log.warning("global_model_not_understood", file=item.path.name, problem=str(error))
        return None

    def _trained(self, number: int, broadcast: Broadcast) -> list[tuple[int, int]]:
        """The chunks of the round whose updates are all on disk: found by a restart."""
        there = {(update.chunk, update.client) for update in self._updates.of_round(number)}
        return [(number, chunk.id) for chunk in broadcast.chunks if self._keys(chunk) <= there]

    def _keys(self, chunk: Chunk) -> set[tuple[int, int | None]]:
        if self.assignment.uplink == Uplink.SUM:
            return {(chunk.id, None)}
        return {(chunk.id, client) for client in chunk.clients}
