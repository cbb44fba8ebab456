"""One running task on a node: passes events to its state machine and carries out the actions that it returns.

Nothing is decided here; see `fedsim.state_machines.node`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fedsim.client.audit_log import OfferedFile, audit_line
from fedsim.client.context import NodeContext
from fedsim.client.model_tests import ModelTests
from fedsim.client.offer_schedule import OfferSchedule
from fedsim.client.phase_answers import PhaseAnswers
from fedsim.client.task_jobs import NodeTaskJobs
from fedsim.client.telemetry import NodeTaskTelemetry
from fedsim.messages import Assignment, TaskReport
from fedsim.runtime.driver import TaskDriver, contained
from fedsim.runtime.event_file import EventFile
from fedsim.runtime.worker_versions import WorkerVersions
from fedsim.spool.allowlist import want
from fedsim.spool.clear import clear_file, clear_task
from fedsim.spool.client_states import settle_states
from fedsim.spool.files import Kind
from fedsim.spool.updates import UpdateIndex, file_id
from fedsim.state_machines import node_events as events
from fedsim.state_machines.node import NodeMachine
from fedsim.state_machines.policy import beyond_rules
from fedsim.update import Update
from fedsim.wire.sender import Outcome, Status
from fedsim.worker import jobs
from fedsim.worker.evaluation_jobs import HeldOutTested


@dataclass(frozen=True)
class _Stored:
    """What is stored of a task when it is started or resumed."""

    updates: UpdateIndex
    versions: WorkerVersions
    problem: str | None


class NodeTask(TaskDriver[events.Event, events.Action]):
    """A task from its `initparam` to its end on this node."""

    def __init__(self, assignment: Assignment, context: NodeContext) -> None:
        """Make the driver; `start` reads what is stored of the task."""
        self.assignment = assignment
        self._context = context
        self._node = context.config.name
        self._cleared = False
        self._loaded = 0
        self._jobs = NodeTaskJobs(assignment, context)
        self._events = EventFile(self._jobs.updates)
        self._answers = PhaseAnswers(assignment.task, context)
        self._tests = ModelTests(assignment.task, context)
        self._offers = OfferSchedule()
        self._telemetry = NodeTaskTelemetry(assignment, context.metrics)
        self._versions: WorkerVersions | None = None
        self._machine = NodeMachine(assignment)
        super().__init__(assignment.task, self._telemetry, context.outbox, context.writer, context.restarts)

    def _read(self) -> _Stored:
        """Read what is stored of the task."""
        folder, problem = self._jobs.updates, self._jobs.take_states()
        updates = UpdateIndex(folder).open()
        settle_states(folder, updates)
        return _Stored(updates, WorkerVersions.open(folder), problem)

    def _restore(self, stored: _Stored) -> None:
        self._updates, self._versions = stored.updates, stored.versions
        updates = stored.updates.all()
        keys = [(update.base_round, update.chunk, update.client) for update in updates]
        self._machine = NodeMachine(self.assignment, keys)

    # ------------------------------------------------------------ lifecycle

    @property
    def ended(self) -> bool:
        """Whether the task is over on this node, and its files are gone."""
        return self._cleared

    @property
    def decided(self) -> bool:
        """See TaskDriver."""
        return self._machine.ended

    @property
    def progress(self) -> int:
        """See TaskDriver."""
        return self._machine.round

    @property
    def report(self) -> TaskReport:
        """What the node's announcements report of the task."""
        if self.abandoned:
            return TaskReport(
                task=self.uid, state="failed", reason="an internal error of fedsim; see the node's journal"
            )
        versions = {} if self._versions is None else self._versions.hosts
        now = {"versions": tuple(versions.get(self._node, ())), "worker_deaths": self._pool.deaths if self._pool else 0}
        return self._machine.report.model_copy(update=now)

    @property
    def status(self) -> str:
        """For `systemctl status`."""
        suspended = "" if self.suspended is None else f", suspended: {self.suspended.words}"
        return f"task {self.assignment.number}: {self.report.state}, round {self._machine.round}{suspended}"

    @contained
    def start(self, refusal: str | None) -> None:
        """Start, or resume from what is stored; `refusal` is why the institution forbids the task."""
        log, server, settings = self._context.audit_log, self._context.server.name, self.assignment.settings
        lines = [] if refusal is not None else log.accept(self.assignment, server)
        if lines:
            self._log.info(
                "task_accepted", user=self.assignment.user, purpose=settings.purpose, dataset=settings.dataset
            )

        def read() -> _Stored:
            if refusal is None:
                log.add(lines)
                kinds = dict.fromkeys((Kind.GLOBALPARAM, Kind.REQUEST, Kind.EVALUATE))
                rules = self._context.config.forwarding
                want(self._context.spool, self.uid, kinds, accept_forwarded=rules.accept, pass_on=rules.pass_on)
            return self._read()

        def begin(stored: _Stored) -> list[events.Action]:
            self._restore(stored)
            self._telemetry.started(stored.versions.version)
            problem = refusal or stored.problem
            return self._begin() if problem is None else self.handle(events.Failed(problem, refused=True))

        self.write(read, begin)
        self.scan_received()

    @contained
    def scan_received(self) -> None:
        """Process the questions, the models to be tested and the newest global model that were received."""
        for request in self._answers.arrived():
            self.dispatch(request)
        for order in self._tests.arrived():
            self.dispatch(order)
        self.in_turn(self._global_arrived)

    def _global_arrived(self) -> list[events.Action]:
        before = self._machine.round
        newest = self._jobs.newest_global(before, self._machine.models_in_use)
        if newest is None:
            return []
        rules = self._context.config.institution
        if (problem := beyond_rules(self.assignment, rules, *newest)) is not None:
            return self.handle(events.Failed(problem, refused=True))
        actions = self.handle(events.GlobalArrived(*newest))
        if self._machine.round < before:
            problem = f"the server is in round {self._machine.round} again: it was restored from a backup"
            self._log.warning("server_set_back", round=before, problem=problem)
        if self._machine.round != before:
            self._offers.reset()
            number, broadcast = newest
            trained = {chunk for round_number, chunk in self._machine.trained if round_number == number}
            self._telemetry.round_started(number, {chunk.id for chunk in broadcast.chunks} - trained)
        return actions

    @contained
    def offer_again(self) -> None:
        """Offer the round's updates again if that is due: until they were used, the server may have lost them."""
        if self._offers.due():
            self.dispatch(events.UsePending())

    @contained
    def stop(self, reason: str) -> None:
        """The server ended the task; a final model that was received before is processed first."""
        if self._versions is None:
            self.write(self._read, self._restore)
        self.scan_received()
        self._log.info("task_stopped", reason=reason)
        self.dispatch(events.Stopped())

    @contained
    def transfer_ended(self, outcome: Outcome) -> None:
        """A transfer of this task has ended."""
        file = outcome.file_id
        self._telemetry.transfer_ended(outcome)
        if outcome.delivered:
            self._log.info(
                "file_left",
                to=outcome.peer.name,
                **file.model_dump(mode="json", exclude_none=True, exclude={"task"}),
                bytes=outcome.bytes_sent,
            )
            if file.kind is Kind.TESTSET:
                clear_file(self._context.spool.path(file, self._node))
            elif file.kind is Kind.ANSWER:
                self._answers.delivered(file)
            elif file.kind is Kind.METRICS:
                self._tests.delivered(file)
                self.dispatch(events.ReportDelivered(file.round or 0))
        elif file.kind is Kind.TESTSET and outcome.code == "source_missing":
            pass  # it was offered twice, and cleared once the server had it
        elif outcome.status is Status.REFUSED:
            self.dispatch(events.Failed(f"the server refused the {file.kind}: {outcome.message}"))

    @contained
    def workers_ready(self) -> None:
        """Process the replies and deaths of workers, and let idle ones train."""
        super().workers_ready()
        self.in_turn(lambda: None if self._pool is None else self.handle(events.WorkersIdle(self._pool.idle)))

    def worker_replied(self, reply: jobs.Reply) -> None:
        """Tell the state machine what a worker has done."""
        match reply:
            case jobs.DataLoaded():
                self._loaded += 1
                if self._loaded >= self._jobs.workers:  # so that none starts within a round
                    if self.report.state == "loading":
                        self._telemetry.loaded(reply.num_examples)
                    self.dispatch(events.Loaded(reply.num_examples, reply.partition))
            case jobs.Done():
                self._send_testset()
            case jobs.ChunkTrained():
                self._updates.add(reply.updates)
                self._telemetry.trained(reply, self._updates)
                self.dispatch(events.Trained(reply.round, reply.chunk))
            case jobs.AnswerMade():
                self.dispatch(events.Answered(reply.phase, reply.round, json.dumps(reply.content)))
            case HeldOutTested():
                self.dispatch(events.ModelTested(reply.round, reply.report.model_dump_json()))
            case jobs.ClientDiverged():
                self.dispatch(events.TrainingDiverged(reply.round, reply.client, reply.chunk))
            case jobs.CheckpointSaved():
                self._log.info("final_model_kept", digest=reply.digest)
                self._jobs.prune_models()
                self.dispatch(events.FinalKept())
            case jobs.JobFailed():
                self.dispatch(events.Failed(reply.reason, reply.refused, reply.round, reply.chunk))

    # ------------------------------------------------------------ carrying out

    def handle(self, event: events.Event) -> list[events.Action]:
        """See TaskDriver."""
        machine = self._machine
        return self._events.record(event, time.monotonic(), lambda: machine.handle(event), lambda: machine.phase)

    def _begin(self) -> list[events.Action]:
        machine = self._machine
        started = events.NodeTaskStarted(self.assignment, tuple(machine.stored))
        return self._events.record(started, time.monotonic(), machine.begin, lambda: machine.phase)

    def failure(self, reason: str) -> events.Event:
        """See TaskDriver; the server ends the task."""
        return events.Failed(reason)

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
                self.submit(self._jobs.write_testset())
            case events.AnswerRequest(phase, number):
                self.submit(self._answers.job(phase, number))
            case events.SendAnswer(phase, number, content):
                self._offer([self._answers.answer(phase, number, content)])
            case events.TestModel(number):
                self.submit(self._tests.job(number))
            case events.SendReport(number, content):
                self._offer([self._tests.report(number, content)])
            case events.TrainChunk(number, chunk):
                self.submit(self._jobs.train(number, chunk, self._tests.awaited(self.assignment.settings, number)))
            case events.SendUpdates(number, chunk_id):
                self._offer([self._as_offered(update) for update in self._updates.of_chunk(number, chunk_id)])
            case events.ClearUsedUpdates():
                self._jobs.clear_used(action, self._updates)
            case events.ClearGlobals():
                self._jobs.clear_globals(action)
            case events.KeepFinal(number):
                self.submit(self._jobs.keep_final(number))
            case events.EndWorkers():
                self.end_workers()
                self._telemetry.stopped()
            case events.End():
                self.quit()
                self.write(self.clear, lambda _: self._end())

    def clear(self) -> None:
        """Clear everything of the task but what its clients keep; in the writer's thread."""
        self._events.keep(self._context.config.spool / "events", f"task-{self.assignment.number:06d}")
        self._jobs.keep_states()
        clear_task(self._context.spool, self.uid)

    def _end(self) -> None:
        self._cleared = True
        self._log.info("task_ended", round=self._machine.round)
        self._context.announce()

    def record_versions(self) -> None:
        """Record the versions of the task's workers, and log those that the task was not started under."""
        versions = self._versions
        if versions is None or self._pool is None or not (new := versions.add(self._node, self._pool.versions)):
            return
        self.write(versions.write)
        for version in new:
            if version != versions.version:
                problem = f"{versions.version}, which the task was started under here, is not installed (any more)"
                self._log.warning("other_version", version=version, problem=problem)

    def _load(self) -> None:
        first = self._jobs.load()
        if first is None:
            self.dispatch(events.Failed(f"there is no data set {self.assignment.settings.dataset} here"))
            return
        assert self._versions is not None  # noqa: S101 - read before the first action
        self._pool = self._jobs.start_workers(self._versions.version, first, self.workers_ready)
        self.record_versions()

    def _offer(self, files: Sequence[OfferedFile]) -> None:
        """Send files to the server, after the audit log has a durable line for each."""
        server, outbox = self._context.server, self._context.outbox
        new = [file for file in files if self._offers.add(file.id)]
        lines = [audit_line(file, self.assignment, server.name) for file in new]

        def send(_: None) -> None:
            for file in files:
                outbox.send(server, file.id, file.source, meta=file.meta, digest=file.digest)

        self.write(partial(self._context.audit_log.add, lines), send)

    def _as_offered(self, update: Update) -> OfferedFile:
        meta = update.model_dump(mode="json", exclude_defaults=True)
        path = self._updates.path(update)
        return OfferedFile(file_id(update, self.uid), path, update.size, update.num_examples, meta, update.digest)

    def _send_testset(self) -> None:
        parts = [(file, path) for file, path in self._jobs.testset() if path.exists()]  # cleared once it is delivered
        self._offer([OfferedFile(file, path, path.stat().st_size) for file, path in parts])
