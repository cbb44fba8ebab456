"""One running task on the server: passes events to its state machine and carries out the actions that it returns.

Nothing is decided here; see `fedsim.state_machines.task`.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import partial

from fedsim.errors import SuspendReason, Unavailable
from fedsim.learning.transforms import task_phases
from fedsim.messages import TaskReport
from fedsim.runtime.driver import TaskDriver, contained
from fedsim.runtime.event_file import EventFile
from fedsim.server.context import ServerContext
from fedsim.server.progress import TaskProgress
from fedsim.server.projection import TaskProjection, missing_clients
from fedsim.server.task_arrivals import TaskArrivals
from fedsim.server.task_dir import TaskDir
from fedsim.server.task_jobs import TaskJobs
from fedsim.server.task_outbox import TaskOutbox
from fedsim.server.task_reports import TaskReports
from fedsim.server.task_writes import TaskWrites
from fedsim.server.telemetry import ServerTaskTelemetry
from fedsim.spool.clear import clear_file, clear_rounds, clear_task
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Arrived
from fedsim.state_machines import task_events as events
from fedsim.state_machines.phases import NodeQuery
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task import TaskMachine
from fedsim.wire.sender import Outcome, Status
from fedsim.worker import jobs


class ServerTask(TaskDriver[events.Event, events.Action]):
    """A task between its plan and its end."""

    def __init__(self, plan: Plan, context: ServerContext) -> None:
        """Make the driver; `start` reads what is stored of the task."""
        self.plan = plan
        self.outcome: events.Finish | events.Postpone | None = None
        self._context = context
        self._folder = TaskDir(context.spool.folder(Kind.GLOBALPARAM), plan.task)
        self._records = TaskProjection(plan, self._folder, context.store)
        self._files = TaskOutbox(plan, context, self._folder, self._records)
        self._jobs = TaskJobs(plan, context, self._folder, self._records, self.submit)
        self._writes = TaskWrites(plan, context, self._folder, self._records, self._jobs)
        self._reports = TaskReports(plan, context)
        self._arrivals = TaskArrivals(plan, self._records, self._reports)
        self._roster: events.WriteRoster | None = None
        self._machine = TaskMachine(plan, events.Restored(), own_testset=plan.testset_from is None)
        self._events = EventFile(self._folder.path)
        self._progress = TaskProgress(context, self._records)
        self._telemetry = ServerTaskTelemetry(plan, context.metrics)
        super().__init__(plan.task, self._telemetry, context.outbox, context.writer, context.restarts)

    # ------------------------------------------------------------ lifecycle

    @property
    def wake_at(self) -> float | None:
        """When `tick` is due (time.monotonic)."""
        return None if self._queue.held else self._machine.wake_at

    @property
    def ended(self) -> bool:
        """Whether the task is over, and its row is updated, or is postponed."""
        return self.outcome is not None or self.abandoned

    @property
    def decided(self) -> bool:
        """See TaskDriver."""
        return self._machine.ended

    @property
    def progress(self) -> int:
        """See TaskDriver."""
        return self._machine.committed

    @contained
    def start(self) -> None:
        """Start a new task."""
        self.write(self._writes.create, self._begin)

    @contained
    def resume(self) -> None:
        """Continue from what is stored."""
        self.write(self._writes.read, self._begin)

    def _begin(self, restored: events.Restored) -> list[events.Action]:
        phases = [NodeQuery(phase) for phase in task_phases(self.plan.settings, self.plan.data_schema)]
        machine = self._machine = TaskMachine(self.plan, restored, self.plan.testset_from is None, phases)
        self._roster = restored.roster
        self._pool = self._jobs.start_workers(self.workers_ready)
        self._telemetry.started(machine.round, resumed=machine.committed >= 0)
        self._event("resumed" if machine.committed >= 0 else "started", f"on the nodes {', '.join(self.plan.nodes)}")
        self.record_versions()
        for kind in (Kind.ANSWER, Kind.METRICS, Kind.LOCALPARAM):
            for item in self._context.spool.arrived(kind, self.uid):
                self.file_arrived(item)
        now = time.monotonic()
        started = events.TaskStarted(self.plan, restored, machine.own_testset)
        return self._events.record(started, now, lambda: machine.begin(now), lambda: machine.phase)

    @contained
    def tick(self) -> None:
        """Time has passed."""
        self.dispatch(events.TimePassed())

    @contained
    def node_reported(self, node: str, report: TaskReport | None) -> None:
        """A node announced itself."""

        def reported() -> list[events.Action]:
            if report is not None and node in self.plan.nodes:
                self._record_versions(node, report.versions)
                self._progress.node_reported(node, report)
            if (write := self._records.came_late(node)) is not None:
                self.write_behind(write)
            return self.handle(events.NodeReported(node, report))

        self.in_turn(reported)

    @contained
    def stop(self, reason: str) -> None:
        """A user wants the task to end."""
        self.dispatch(events.StopRequested(reason))

    @contained
    def file_arrived(self, item: Arrived) -> None:
        """A file of this task has arrived."""
        self.in_turn(lambda: self._file_arrived(item))

    def _file_arrived(self, item: Arrived) -> list[events.Action]:
        event = self._arrivals.read(item, accepts_updates_of=self._machine.accepts_updates_of)
        return [] if event is None else self.handle(event)

    @contained
    def transfer_ended(self, outcome: Outcome) -> None:
        """A transfer of this task has ended."""
        file = outcome.file_id
        self._telemetry.transfer_ended(outcome)
        if file.kind is Kind.GLOBALPARAM and file.round is not None:
            self._records.record_sent(file.round, outcome.bytes_sent)
            if outcome.delivered and file == FileId.model_of(self.uid, self._machine.last_round):
                self.dispatch(events.FinalDelivered(outcome.peer.name))
        if outcome.status is Status.REFUSED and file.kind is Kind.EVALUATE:
            self.dispatch(self._reports.refused(outcome))
        elif outcome.status is Status.REFUSED:
            self.dispatch(events.NodeRefused(outcome.peer.name, f"the {file.kind}: {outcome.message}"))

    def worker_replied(self, reply: jobs.Reply) -> None:
        """Record what a worker has done, and notify the state machine."""
        match reply:
            case jobs.ModelMade():
                self._records.made(reply)
                first = events.InitialModelMade()
                self.dispatch(events.Aggregated(reply.round, finite=reply.finite) if reply.round else first)
            case jobs.Tested():
                record = self._records.tested(reply)
                self._telemetry.tested(record)
                self.write(lambda: self._records.write_round(record))
                self.dispatch(events.Evaluated(reply.round, tuple(reply.metrics.items())))
            case jobs.CheckpointSaved():
                self._telemetry.saved(reply)
                self.write(lambda: self._records.saved(reply))
                self.dispatch(events.Saved(reply.round))
            case jobs.JobFailed():
                self.dispatch(events.Broken(reply.reason))

    def record_versions(self) -> None:
        """Record the versions of the workers here."""
        self._record_versions("the server", self._pool.versions if self._pool else ())

    def _record_versions(self, host: str, found: Collection[str]) -> None:
        """Workers of these versions of fedsim compute for the task on `host`."""
        versions = self._writes.versions
        if new := versions.add(host, found):
            self.write(versions.write)
        if others := [version for version in new if version != self.plan.version]:
            text = f"the workers on {host} are of version {', '.join(others)}; the task began with {self.plan.version}"
            self._log.warning("other_version", host=host, problem=text)
            self._event("version", f"{text}: its result is not comparable with others")

    def _event(self, kind: str, text: str) -> None:
        """Record a remark at the task."""
        self.write_behind(self._records.event(kind, text))

    # ------------------------------------------------------------ carrying out

    def handle(self, event: events.Event) -> list[events.Action]:
        """See TaskDriver."""
        now, machine = time.monotonic(), self._machine
        actions = self._events.record(event, now, lambda: machine.handle(event, now), lambda: machine.phase)
        if self._events.rotation_due and (snapshot := machine.snapshot()) is not None:
            self._events.rotate(events.TaskStarted(self.plan, snapshot, machine.own_testset), now)
        return actions

    def suspend(self, error: Unavailable) -> None:
        """See TaskDriver; the task's progress shows the reason, if the database can be written to."""
        super().suspend(error)
        if error.suspend_reason is not SuspendReason.DATABASE_LOST:
            progress = self._progress.suspended(self._machine, str(error))
            write = partial(self._context.store.tasks.set_progress, self.uid, progress)
            self._context.writer.submit(write, lambda _: None)  # it may fail: the database may be on the same disk

    def failure(self, reason: str) -> events.Event:
        """See TaskDriver."""
        return events.Broken(reason)

    def quit(self) -> None:
        """See TaskDriver; global models that wait for the next turn are not sent."""
        super().quit()
        self._context.broadcasts.cancel(lambda file: file.task == self.uid)

    def give_up(self, reason: str) -> None:
        """Abandon the task; its row is updated if that is possible."""
        super().give_up(reason)
        self._writes.abandon(reason)

    def carry_out(self, action: events.Action) -> None:
        """See TaskDriver."""
        match action:
            case events.Assign(node):
                self._files.assign(node)
            case events.CreateInitialModel():
                self._jobs.make_initial_model()
            case events.RecordCounts(counts):
                self.write(partial(self._writes.record_counts, counts))
            case events.SendGlobal():
                self._files.send_global(action)
            case events.WriteRoster():
                self._write_roster(action)
            case events.AggregateRound(number, updates):
                self._jobs.aggregate(number, updates)
            case events.Commit():
                self._commit(action)
            case events.ClearUpdates(through):
                self.write_behind(lambda: clear_rounds(self._context.spool, Kind.LOCALPARAM, self.uid, through))
            case events.DiscardUpdate(update):
                clear_file(self._jobs.update_path(update))
            case events.EvaluateRound(number):
                self._jobs.evaluate(number)
            case events.OrderEvaluation() | events.RecordNodeTests() | events.DiscardReport():
                self._have_nodes_test(action)
            case events.Save(number):
                self._jobs.save(number, {**self._records.about(number), **self._writes.versions.about()})
            case events.KeepBest(number):
                self.write_behind(partial(self._records.keep_best, number))
            case events.RemoveCheckpoint(number, better):
                self.write_behind(partial(self._writes.remove_checkpoint, number, better))
            case events.ClearModel(number):
                self.write_behind(lambda: self._folder.remove_round(number))
            case events.SendFinal():
                self._files.send_final(action)
            case events.RecordEvent(kind, text):
                self._log.warning(kind, problem=text)
                self._event(kind, text)
            case events.RequestAnswer():
                self._files.request_answer(action)
            case events.CompletePhase():
                self._files.cancel_requests(action.phase)
                self.write(partial(self._writes.complete_phase, action))
            case events.Postpone():
                self.outcome = action
                self.quit()
            case events.Finish():
                self._finish(action)

    def _have_nodes_test(self, action: events.OrderEvaluation | events.RecordNodeTests | events.DiscardReport) -> None:
        match action:
            case events.OrderEvaluation():
                self._files.order_evaluation(action)
            case events.DiscardReport(node, number):
                clear_file(self._reports.path(node, number))
            case events.RecordNodeTests(number):
                self._files.cancel_evaluation(number)
                record = self._records.node_tested(action)
                self.write(lambda: self._records.write_round(record))
                self.write_behind(partial(self._reports.clear, number))
                self._telemetry.nodes_tested(record)

    def _write_roster(self, roster: events.WriteRoster) -> None:
        gathered = self._records.closed(roster.round, sum(update.size for update in roster.updates))
        self.write(lambda: self._folder.write_roster(roster, gathered))
        self._roster = roster
        if missing := missing_clients(roster):
            self._log.warning("round_closed_without", round=roster.round, clients=missing)
            self._event("missing", f"round {roster.round} went on without the clients {missing}")
        self._files.cancel_global(roster.round)

    def _commit(self, commit: events.Commit) -> None:
        record, content = self._records.close_round(commit, self._roster if commit.round else None)
        self.write(partial(self._writes.commit, commit.round, content), lambda _: self._telemetry.committed(record))
        self.write_behind(partial(self._records.write_round, record, self._records.participation))
        for text in self._records.screening_events(commit.round):
            self.carry_out(events.RecordEvent("screening", text))

    # ------------------------------------------------------------ the end

    def _finish(self, finish: events.Finish) -> None:
        """Store what nodes have yet to receive, then change the row; the start-up sweep clears what a crash leaves."""
        last = self._machine.committed
        released = last if finish.released is None else finish.released
        digest = self._records.digest(released) if finish.outcome == "completed" else None
        promise = self._context.stops.promise(finish.stopped_nodes, self.uid, finish.reason)

        def end(moved: bool) -> None:
            if not moved:
                self._log.warning("task_was_ended_elsewhere", outcome=finish.outcome)
            self.outcome = finish
            self.quit()
            self._context.stops.send(finish.stopped_nodes, self.uid, finish.reason)
            if finish.awaiting_final:
                self._context.finals.send(self.uid)
            self._event(finish.outcome, finish.reason)
            if finish.warning:
                self.carry_out(events.RecordEvent("warning", finish.warning))
            self._telemetry.finished(finish, last, headline=self._records.latest_headline, digest=digest)

        self.write(partial(self._writes.end, finish, last, digest, promise), end)

    def clear(self) -> None:
        """Remove its files from the spool: after it has ended, in the writer's thread."""
        self._events.keep(self._context.config.spool / "events", f"task-{self.plan.number:06d}")
        clear_task(self._context.spool, self.uid)

    # ------------------------------------------------------------ progress

    def publish_progress(self) -> float | None:
        """Record what the task is doing if it is time to; returns when it will be, None if nothing is new."""
        now = time.monotonic()
        if now < self._progress.due:
            return self._progress.due
        if not self._machine.ended:
            self._telemetry.publish_round(self._machine.round)
            if (waited := self._progress.waited(self._machine, now)) is not None:
                self.write_behind(partial(self._folder.write_waited, *waited))
            if (progress := self._progress.update(self._machine, now)) is not None:
                self.write_behind(partial(self._context.store.tasks.set_progress, self.uid, progress))
        return None

    @property
    def status(self) -> str:
        """For `systemctl status`."""
        return self._progress.status(self._machine, self.plan.number, self.plan.settings.num_rounds)
