"""One running task on a node: turns what happens into the course's events, and carries out its actions.

Nothing is decided here; see `fedsim.state_machines.node`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsim.client.audit_log import AuditLog, TaskAudit
from fedsim.client.telemetry import Story
from fedsim.client.worker_versions import TaskWorkerVersions
from fedsim.config import ClientConfig, DataSetConfig
from fedsim.errors import BadInput, DiskFull
from fedsim.messages import Assignment, Broadcast, Chunk, TaskReport, read_message
from fedsim.metrics import NodeMetrics
from fedsim.spool.allowlist import want
from fedsim.spool.clear import clear_file, clear_task
from fedsim.spool.durable import make_folder, remove_file
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Spool
from fedsim.spool.updates import UpdateIndex
from fedsim.state_machines import node as course
from fedsim.update import Update
from fedsim.wire.outbox import Outbox
from fedsim.wire.peer import Peer
from fedsim.wire.sender import Outcome, Status
from fedsim.worker import jobs
from fedsim.worker.forking import ForkServers
from fedsim.worker.pool import WorkerPool


@dataclass
class Platform:
    """What a running task works with; `config` is replaced when the daemon reloads it."""

    config: ClientConfig
    spool: Spool
    outbox: Outbox
    server: Peer
    fork_servers: ForkServers
    leaving: AuditLog
    announce: Callable[[], None]
    metrics: NodeMetrics


class RunningTask:
    """A task from its `initparam` to its end on this node."""

    def __init__(self, assignment: Assignment, platform: Platform) -> None:
        self.assignment = assignment
        self.uid = assignment.task
        self.let_go_of = False
        self._platform = platform
        self._folder = platform.spool.folder(Kind.LOCALPARAM) / self.uid
        self._updates = UpdateIndex(self._folder)
        self._leaving = TaskAudit(platform.leaving, assignment, platform.server.name)
        self._may_have_left()
        self._begun = TaskWorkerVersions(self._folder)
        self._story = Story(assignment, platform.metrics, self._updates)
        self._log = self._story.log
        self._pool: WorkerPool | None = None
        newest = self._newest_global()
        trained = self._trained(*newest) if newest is not None else []
        self._course = course.NodeMachine(assignment, trained)

    # ------------------------------------------------------------ its life

    @property
    def ended(self) -> bool:
        """Whether the task is over on this node."""
        return self._course.ended

    @property
    def report(self) -> TaskReport:
        """What the node tells of the task."""
        return self._course.report.model_copy(update={"versions": tuple(self._begun.versions)})

    @property
    def status(self) -> str:
        """For `systemctl status`."""
        return f"task {self.assignment.number}: {self.report.state}, round {self._course.round}"

    def start(self, refusal: str | None) -> None:
        """Begin, or take up again what a restart found; `refusal` says why the institution forbids it."""
        self._story.begins(self._begun.version)
        if refusal is not None:
            self._happened(course.Failed(refusal, refused=True))
            return
        want(self._platform.spool, self.uid, {Kind.GLOBALPARAM: None})
        self._do(self._course.begin())
        self.look_for_global()

    def look_for_global(self) -> None:
        """See whether a global model has come."""
        newest = self._newest_global()
        if newest is not None:
            before = self._course.round
            self._happened(course.GlobalArrived(*newest))
            if self._course.round != before:
                number, broadcast = newest
                trained = {chunk for _, chunk in self._trained(number, broadcast)}
                self._story.round_begins(number, {chunk.id for chunk in broadcast.chunks} - trained)

    def stop(self, reason: str) -> None:
        """The server says that the task is over; a final model that came before is looked for first."""
        self.look_for_global()
        self._log.info("task_stopped", reason=reason)
        self._happened(course.Stopped())

    def let_go(self) -> None:
        """End workers and transfers without ending the task: another object takes it up again later.

        Until then it is announced, and heeds a stop; what it would have computed is found to do again then.
        """
        self.let_go_of = True
        self._end_workers()
        self._platform.outbox.cancel(lambda file: file.task == self.uid)

    def _end_workers(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._story.pauses()

    def sent(self, outcome: Outcome) -> None:
        """A transfer of this task has ended."""
        file = outcome.file_id
        self._story.sent(outcome)
        if outcome.delivered:
            self._leaving.taken(outcome)
            if file.kind is Kind.TESTSET:
                clear_file(self._platform.spool.path(file, self._platform.config.name))
        elif outcome.status is Status.REFUSED:
            self._happened(course.Failed(f"the server refused the {file.kind}: {outcome.message}"))

    def workers_ready(self) -> None:
        """A worker answered, or died."""
        if self._pool is None:
            return
        replies, broken = self._pool.replies()
        self._worked()
        for reply in replies:
            self._worker_replied(reply)
        if broken is not None:
            self._happened(course.Failed(broken))
        elif self._pool is not None:
            self._happened(course.WorkersIdle(self._pool.idle))

    def _worker_replied(self, reply: jobs.Reply) -> None:
        match reply:
            case jobs.DataLoaded():
                if self.report.state == "loading":
                    self._story.loaded(reply.num_examples)
                self._happened(course.Loaded(reply.num_examples))
            case jobs.Done():
                self._send_testset()
            case jobs.ChunkTrained():
                self._updates.add(reply.updates)
                self._story.trained(reply)
                self._happened(course.Trained(reply.round, reply.chunk))
            case jobs.ClientDiverged():
                self._happened(course.Diverged(reply.round, reply.client))
            case jobs.CheckpointSaved():
                self._log.info("final_model_kept", digest=reply.digest)
                self._prune_models()
                self._happened(course.FinalKept())
            case jobs.JobFailed(disk_full=True, reason=reason):
                raise DiskFull(reason)
            case jobs.JobFailed():
                self._happened(course.Failed(reply.reason, refused=reply.refused, round=reply.round))

    # ------------------------------------------------------------ carrying out

    def _happened(self, event: course.Event) -> None:
        self._do(self._course.handle(event))

    def _do(self, actions: list[course.Action]) -> None:
        for action in actions:
            self._do_one(action)

    def _do_one(self, action: course.Action) -> None:
        match action:
            case course.Load():
                self._load()
            case course.Report():
                report = self.report
                if report.reason:
                    self._log.warning("task_given_up", state=report.state, problem=report.reason)
                self._platform.announce()
            case course.SendTestset():
                data, labels = (
                    self._platform.spool.path(file, self._platform.config.name) for file in self._testset_files()
                )
                make_folder(data.parent)
                self._give(jobs.WriteTestset(data=data, labels=labels))
            case course.Train(number, chunk):
                model = self._global_path(number)
                self._give(
                    jobs.Train(round=number, chunk=chunk.id, clients=chunk.clients, model=model, out=self._folder)
                )
            case course.SendUpdates(number, chunk_id):
                for update in self._updates.of_chunk(number, chunk_id):
                    self._send_update(update)
            case course.ClearUpdates(through):

                def used(file: FileId) -> bool:
                    return file.kind is Kind.LOCALPARAM and (file.round or 0) <= through

                self._platform.outbox.cancel(lambda file: file.task == self.uid and used(file))
                self._updates.clear(through)
                self._leaving.forget(used)
            case course.ClearGlobals(before):
                for item in self._platform.spool.arrived(Kind.GLOBALPARAM, self.uid):
                    if item.id.round is not None and item.id.round < before:
                        clear_file(item.path)
            case course.KeepFinal(number):
                self._keep_final(number)
            case course.EndWorkers():
                self._end_workers()
            case course.End():
                self.let_go()
                clear_task(self._platform.spool, self.uid)
                self._leaving.forget(lambda _: True)
                self._log.info("task_ended", round=self._course.round)
                self._platform.announce()

    def _may_have_left(self) -> None:
        """What lies here when a task is taken up again was sent before, as far as anybody knows."""
        for update in self._updates.all():
            self._leaving.goes(self._update_id(update), update.size, update.num_examples)
        for file in self._testset_files():
            path = self._platform.spool.path(file, self._platform.config.name)
            if path.exists():
                self._leaving.goes(file, path.stat().st_size)

    def _worked(self) -> None:
        """Note which versions' workers work for the task, and say so where they are not those that it began with."""
        for version in self._begun.worked(self._pool.versions if self._pool is not None else ()):
            problem = f"{self._begun.version}, under which the task began here, is not installed (any more)"
            self._log.warning("other_version", version=version, problem=problem)

    def _load(self) -> None:
        config = self._platform.config
        dataset = self._dataset()
        if dataset is None:
            self._happened(course.Failed(f"there is no data set {self.assignment.settings.dataset} here"))
            return
        first = jobs.Load(
            assignment=self.assignment,
            dataset=dataset,
            folder=config.data,
            min_examples=config.institution.min_examples,
        )
        self._pool = WorkerPool(
            [str(number) for number in range(config.workers)],
            self._platform.fork_servers,
            self.workers_ready,
            threads=self.assignment.engine.threads,
            max_restarts=config.max_worker_restarts,
            log={"task": self.assignment.number, "node": config.name},
            version=self._begun.version,
            on_death=self._platform.metrics.worker_restarts.inc,
            first=first,
        )
        self._worked()

    def _give(self, job: jobs.Job) -> None:
        if self._pool is not None:
            self._pool.give(job)

    def _send_update(self, update: Update) -> None:
        file = self._update_id(update)
        self._leaving.goes(file, update.size, update.num_examples)
        meta = update.model_dump(mode="json", exclude_defaults=True)
        path = self._updates.path(update)
        self._platform.outbox.send(self._platform.server, file, path, meta=meta, digest=update.digest)

    def _update_id(self, update: Update) -> FileId:
        return FileId(
            kind=Kind.LOCALPARAM, task=self.uid, round=update.base_round, chunk=update.chunk, client=update.client
        )

    def _send_testset(self) -> None:
        for file in self._testset_files():
            path = self._platform.spool.path(file, self._platform.config.name)
            self._leaving.goes(file, path.stat().st_size)
            self._platform.outbox.send(self._platform.server, file, path)

    def _testset_files(self) -> tuple[FileId, FileId]:
        return (
            FileId(kind=Kind.TESTSET, task=self.uid, part="data"),
            FileId(kind=Kind.TESTSET, task=self.uid, part="label"),
        )

    def _keep_final(self, number: int) -> None:
        assignment = self.assignment
        self._give(
            jobs.SaveCheckpoint(
                settings=assignment.settings,
                feature_shape=assignment.feature_shape,
                num_classes=assignment.num_classes,
                round=number - 1,
                model=self._global_path(number),
                out=self._models() / f"task-{assignment.number:06d}.safetensors",
                about={
                    "task": assignment.number,
                    "uid": assignment.task,
                    "round": number - 1,
                    "settings": assignment.settings.model_dump(mode="json"),
                },
            )
        )

    def _prune_models(self) -> None:
        """The final models of the newest tasks stay."""
        models = sorted(self._models().glob("task-*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in models[: -self._platform.config.keep_models]:
            remove_file(path)
            remove_file(path.with_suffix(".json"))
            self._log.info("old_model_removed", file=path.name)

    # ------------------------------------------------------------ what lies where

    def _models(self) -> Path:
        return self._platform.config.spool / "checkpoints"

    def _dataset(self) -> DataSetConfig | None:
        wanted = self.assignment.settings.dataset
        return next((dataset for dataset in self._platform.config.datasets if dataset.name == wanted), None)

    def _global_path(self, number: int) -> Path:
        return self._platform.spool.path(FileId(kind=Kind.GLOBALPARAM, task=self.uid, round=number), "")

    def _newest_global(self) -> tuple[int, Broadcast] | None:
        """The newest global model that has come, and what stands beside it."""
        for item in reversed(self._platform.spool.arrived(Kind.GLOBALPARAM, self.uid)):
            try:
                metadata = item.metadata()
                return item.id.round or 0, read_message(Broadcast, metadata.meta, f"metadata of {item.path.name}")
            except BadInput as error:
                self._log.warning("global_model_not_understood", file=item.path.name, problem=str(error))
        return None

    def _trained(self, number: int, broadcast: Broadcast) -> list[tuple[int, int]]:
        """The chunks of the round whose updates all lie on disk: found by a restart."""
        there = {(update.chunk, update.client) for update in self._updates.of_round(number)}
        return [(number, chunk.id) for chunk in broadcast.chunks if self._keys(chunk) <= there]

    def _keys(self, chunk: Chunk) -> set[tuple[int, int | None]]:
        if self.assignment.settings.linear:
            return {(chunk.id, None)}
        return {(chunk.id, client) for client in chunk.clients}


def refusal(assignment: Assignment, config: ClientConfig) -> str | None:
    """Why the institution's rules in client.yml forbid this task, or None."""
    rules = config.institution
    settings = assignment.settings
    if rules.models is not None and settings.model not in rules.models:
        return f"this institution allows the models {', '.join(rules.models)}, not {settings.model}"
    if rules.min_privacy_level != "none":
        return f"this institution demands the privacy level {rules.min_privacy_level}, which the task does not offer"
    if assignment.send_testset:
        shared = [dataset.name for dataset in config.datasets if dataset.share]
        if settings.dataset not in shared:
            return f"the test set of {settings.dataset} does not leave this house (`share: false`)"
    return None
