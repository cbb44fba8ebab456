"""One running task on the server: passes events to its state machine and carries out the actions that it returns.

Nothing is decided here; see `fedsim.state_machines.task`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from fedsim.errors import BadInput
from fedsim.learning.aggregate import uplink_layout
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import make_pipeline, task_phases
from fedsim.messages import Broadcast, PhaseAnswer, PhaseRequest, TaskReport, read_message
from fedsim.runtime.driver import TaskDriver, contained
from fedsim.runtime.event_file import EventFile
from fedsim.runtime.worker_versions import WorkerVersions
from fedsim.server.context import ServerContext
from fedsim.server.deliveries import Delivery
from fedsim.server.projection import TaskProjection, checkpoint_name
from fedsim.server.task_dir import TaskDir
from fedsim.server.task_jobs import AGGREGATOR, EVALUATOR, TaskJobs
from fedsim.server.telemetry import ServerTaskTelemetry
from fedsim.spool.allowlist import want
from fedsim.spool.clear import clear_file, clear_rounds, clear_task
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Arrived
from fedsim.spool.npy import open_vector
from fedsim.state_machines import task_events as events
from fedsim.state_machines.phases import NodeQuery
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task import TaskMachine
from fedsim.store.records import TaskState
from fedsim.update import Update
from fedsim.wire.sender import Outcome, Status
from fedsim.worker import jobs
from fedsim.worker.pool import WorkerPool

PROGRESS_SECONDS = 0.25
LISTED_MISSING = 50  # the round's record names all


class ServerTask(TaskDriver[events.Event, events.Action]):
    """A task between its plan and its end."""

    def __init__(self, plan: Plan, context: ServerContext) -> None:
        """Make the driver; `start` reads what is stored of the task."""
        self.plan = plan
        self.outcome: events.Finish | None = None
        self._context = context
        self._folder = TaskDir(context.spool.folder(Kind.GLOBALPARAM), plan.task)
        self._records = TaskProjection(plan, self._folder, context.store)
        self._jobs = TaskJobs(plan, context, self._folder, self.submit)
        self._roster: events.WriteRoster | None = None
        self._machine = TaskMachine(plan, events.Restored(), own_testset=plan.testset_from is None)
        self._events = EventFile(self._folder.path)
        self._published_at = 0.0
        self._telemetry = ServerTaskTelemetry(plan, context.metrics)
        super().__init__(plan.task, self._telemetry, context.outbox, context.writer)

    # ------------------------------------------------------------ its life

    @property
    def round(self) -> int:
        """The round that is under way."""
        return self._machine.round

    @property
    def wake_at(self) -> float | None:
        """When `tick` is due (time.monotonic)."""
        return None if self._queue.held else self._machine.wake_at

    @property
    def ended(self) -> bool:
        """Whether the task is over, and its row says so."""
        return self.outcome is not None or self.abandoned

    @property
    def decided(self) -> bool:
        """See TaskDriver."""
        return self._machine.ended

    @contained
    def start(self) -> None:
        """Start a new task."""
        self.write(self._create, self._begin)

    @contained
    def resume(self) -> None:
        """Continue from what is stored."""
        self.write(self._read, self._begin)

    def _create(self) -> events.Restored:
        self._folder.write_plan(self.plan)
        return self._read()

    def _read(self) -> events.Restored:
        store = self._context.store
        store.tasks.set_nodes(self.uid, self.plan.nodes)
        self._records.open()
        self._versions = WorkerVersions.open(self._folder.path, self.plan.version)
        restored = self._restored()
        if restored.counts is not None:  # a crash may have come between the counts and the row
            store.tasks.move(self.uid, TaskState.RUNNING, now=time.time())
        self._want()
        return restored

    def _begin(self, restored: events.Restored) -> list[events.Action]:
        phases = [NodeQuery(phase) for phase in task_phases(self.plan.settings)]
        machine = self._machine = TaskMachine(self.plan, restored, self.plan.testset_from is None, phases)
        self._start_workers()
        resumed = machine.committed >= 0
        self._telemetry.started(machine.round, resumed=resumed)
        self._event("resumed" if resumed else "started", f"on the nodes {', '.join(self.plan.nodes)}")
        self.record_versions()
        for kind in (Kind.ANSWER, Kind.LOCALPARAM):
            for item in self._context.spool.arrived(kind, self.uid):
                self.file_arrived(item)
        now = time.monotonic()
        started = events.TaskStarted(self.plan, restored, machine.own_testset)
        return self._events.record(started, now, lambda: machine.begin(now), lambda: machine.phase)

    def _start_workers(self) -> None:
        config = self._context.config
        self._pool = WorkerPool(
            (AGGREGATOR, EVALUATOR),
            self._context.fork_servers,
            self.workers_ready,
            threads=config.threads_per_worker,
            max_restarts=config.max_worker_restarts,
            log={"task": self.plan.number},
            version=self.plan.version,
            on_death=self._context.metrics.worker_restarts.inc,
        )

    def _want(self) -> None:
        """Let the receiver take what the nodes are about to be asked for; updates as soon as there is a model."""
        asked = self.plan.testset_from
        kinds: dict[Kind, Collection[str]] = {Kind.LOCALPARAM: self.plan.nodes, Kind.ANSWER: self.plan.nodes}
        if asked is not None:
            kinds[Kind.TESTSET] = (asked,)
        committed = self._folder.committed()
        length = None
        if committed:
            size = len(open_vector(self._folder.model(committed[-1])))
            strategy = make_strategy(self.plan.settings)
            pipeline = make_pipeline(self.plan.settings, strategy)
            length = pipeline.layout(uplink_layout(strategy, size)).size
        want(self._context.spool, self.uid, kinds, num_parameters=length)

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
            return self.handle(events.NodeReported(node, report))

        self.in_turn(reported)

    @contained
    def stop(self, reason: str) -> None:
        """A user wants the task to end."""
        self.dispatch(events.StopRequested(reason))

    @contained
    def file_arrived(self, item: Arrived) -> None:
        """A file of this task has arrived."""
        if item.id.kind is Kind.TESTSET:
            self.dispatch(events.TestsetPartArrived(item.sender or "", item.id.part or ""))
        elif item.id.kind is Kind.ANSWER:
            self.in_turn(lambda: self._answer_arrived(item))
        else:
            self.in_turn(lambda: self._update_arrived(item))

    def _answer_arrived(self, item: Arrived) -> list[events.Action]:
        try:
            answer = read_message(PhaseAnswer, item.path.read_bytes(), f"the answer {item.path.name}")
        except (BadInput, FileNotFoundError) as error:  # its phase may have ended without it
            self._log.warning("answer_refused", file=item.path.name, problem=str(error))
            clear_file(item.path)
            return []
        content = json.dumps(answer.content)
        return self.handle(events.PhaseAnswered(item.sender or "", item.id.phase or "", item.id.round or 0, content))

    def _update_arrived(self, item: Arrived) -> list[events.Action]:
        if not self._machine.accepts_updates_of(item.id.round or 0):
            clear_file(item.path)  # its metadata may have been cleared before it arrived
            return []
        try:
            metadata = item.metadata()
            update = read_message(Update, metadata.meta, f"the metadata of {item.path.name}")
        except BadInput as error:
            self._log.warning("update_refused", file=item.path.name, problem=str(error))
            clear_file(item.path)
            return []
        # Only what the connection proved counts, whatever else the update says of itself.
        proved = {
            "node": metadata.sender,
            "base_round": item.id.round,
            "chunk": item.id.chunk,
            "client": item.id.client,
            "digest": metadata.digest,
            "size": metadata.size,
        }
        return self.handle(events.UpdateArrived(update.model_copy(update=proved)))

    @contained
    def transfer_ended(self, outcome: Outcome) -> None:
        """A transfer of this task has ended."""
        file = outcome.file_id
        self._telemetry.transfer_ended(outcome)
        if file.kind is Kind.GLOBALPARAM and file.round is not None:
            self._records.sent(file.round, outcome.bytes_sent)
            if outcome.delivered and file == FileId.model_of(self.uid, self.plan.settings.num_rounds):
                self.dispatch(events.FinalDelivered(outcome.peer.name))
        if outcome.status is Status.REFUSED:
            self.dispatch(events.NodeRefused(outcome.peer.name, f"the {file.kind}: {outcome.message}"))

    def worker_replied(self, reply: jobs.Reply) -> None:
        """Record what a worker has done, and notify the state machine."""
        match reply:
            case jobs.ModelMade():
                self._records.made(reply)
                made_first = reply.round == 0
                self.dispatch(
                    events.InitialModelMade() if made_first else events.Aggregated(reply.round, finite=reply.finite)
                )
            case jobs.Tested():
                record = self._records.tested(reply)
                self._telemetry.tested(record)
                self.write(lambda: self._records.write_round(record))
                self.dispatch(events.Evaluated(reply.round))
            case jobs.CheckpointSaved():
                self._telemetry.saved(reply)
                self.write(lambda: self._records.saved(reply))
                self.dispatch(events.Saved(reply.round))
            case jobs.JobFailed():
                self.dispatch(events.Broken(reply.reason))

    def record_versions(self) -> None:
        """Record the versions of the workers here."""
        self._record_versions("the server", self._pool.versions if self._pool else ())

    def _record_versions(self, host: str, versions: Collection[str]) -> None:
        """Workers of these versions of fedsim compute for the task on `host`."""
        new = self._versions.add(host, versions)
        if new:
            self.write(self._versions.write)
        if others := [version for version in new if version != self.plan.version]:
            started = f"the task was started under {self.plan.version}"
            text = f"the workers on {host} are of version {', '.join(others)}; {started}"
            self._log.warning("other_version", host=host, problem=text)
            self._event("version", f"{text}: its result is not comparable with others")

    def _event(self, kind: str, text: str) -> None:
        """Record a remark at the task."""
        self.write_behind(self._records.event(kind, text))

    # ------------------------------------------------------------ carrying out

    def handle(self, event: events.Event) -> list[events.Action]:
        """See TaskDriver."""
        now = time.monotonic()
        machine = self._machine
        actions = self._events.record(event, now, lambda: machine.handle(event, now), lambda: machine.phase)
        if self._events.rotation_due and (snapshot := machine.snapshot()) is not None:
            self._events.rotate(events.TaskStarted(self.plan, snapshot, machine.own_testset), now)
        return actions

    def failure(self, reason: str) -> events.Event:
        """See TaskDriver."""
        return events.Broken(reason)

    def give_up(self, reason: str) -> None:
        """Abandon the task; its row says so if that is possible."""
        super().give_up(reason)
        self._context.store.tasks.move(self.uid, TaskState.FAILED, reason=reason, now=time.time())

    def carry_out(self, action: events.Action) -> None:
        """See TaskDriver."""
        match action:
            case events.Assign(node):
                body = self.plan.assignment(node).model_dump_json().encode()
                self._send(node, FileId(kind=Kind.INITPARAM, task=self.uid), body)
            case events.CreateInitialModel():
                self._jobs.make_initial_model()
            case events.RecordCounts(counts):
                self.write(lambda: self._folder.write_counts(counts))
                self.write(lambda: self._context.store.tasks.move(self.uid, TaskState.RUNNING, now=time.time()))
            case events.SendGlobal(node, number, broadcast):
                file = FileId(kind=Kind.GLOBALPARAM, task=self.uid, round=number)
                path, digest = self._folder.broadcast(file.made_in), self._records.broadcast_digest(file.made_in)
                self._send_parameters(node, file, broadcast, path, digest)
            case events.WriteRoster():
                self._write_roster(action)
            case events.AggregateRound(number, updates):
                self._jobs.aggregate(number, updates)
            case events.Commit(number):
                self._commit(number)
            case events.ClearUpdates(through):
                self.write_behind(lambda: clear_rounds(self._context.spool, Kind.LOCALPARAM, self.uid, through))
            case events.DiscardUpdate(update):
                clear_file(self._jobs.update_path(update))
            case events.EvaluateRound(number):
                self._jobs.evaluate(number)
            case events.Save(number):
                self._jobs.save(number, {**self._records.about(number), **self._about_versions()})
            case events.ClearModel(number):
                self.write_behind(lambda: self._folder.remove_round(number))
            case events.SendFinal(node, number):
                file, broadcast = FileId.model_of(self.uid, number), Broadcast.of_final_model(number)
                path, digest = self._folder.model(number), self._records.file_digest(number)
                self._send_parameters(node, file, broadcast, path, digest)
            case events.RecordEvent(kind, text):
                self._log.warning(kind, problem=text)
                self._event(kind, text)
            case events.RequestAnswer(node, phase, number, content):
                request = PhaseRequest(task=self.uid, phase=phase, round=number, content=json.loads(content))
                file = FileId(kind=Kind.REQUEST, task=self.uid, round=number, phase=phase)
                self._send(node, file, request.model_dump_json().encode())
            case events.CompletePhase():
                self._complete_phase(action)
            case events.Finish():
                self._finish(action)

    def _complete_phase(self, done: events.CompletePhase) -> None:
        def complete() -> None:
            self._folder.add_completed_phase(done)
            for item in self._context.spool.arrived(Kind.ANSWER, self.uid, done.round):
                if item.id.phase == done.phase:
                    clear_file(item.path)

        self._context.outbox.cancel(
            lambda file: (file.kind, file.task, file.phase) == (Kind.REQUEST, self.uid, done.phase)
        )
        self.write(complete)

    def _send(self, node: str, file: FileId, source: bytes) -> None:
        self._context.outbox.send(self._context.nodes.addresses[node], file, source)

    def _send_parameters(self, node: str, file: FileId, broadcast: Broadcast, path: Path, digest: str) -> None:
        meta = broadcast.model_dump(mode="json")
        self._context.outbox.send(self._context.nodes.addresses[node], file, path, meta=meta, digest=digest)

    def _write_roster(self, roster: events.WriteRoster) -> None:
        received = sum(update.size for update in roster.updates)
        gathered = self._records.closed(roster.round, received)
        self.write(lambda: self._folder.write_roster(roster, gathered))
        self._roster = roster
        if roster.missing:
            missing = ", ".join(map(str, roster.missing[:LISTED_MISSING]))
            if (more := len(roster.missing) - LISTED_MISSING) > 0:
                missing += f" and {more} more"
            self._log.warning("round_closed_without", round=roster.round, clients=missing)
            self._event("missing", f"round {roster.round} went on without the clients {missing}")
        # A node that has not received the round's model by now does not need it any more.
        self._context.outbox.cancel(self._is_global(roster.round))

    def _is_global(self, number: int) -> Callable[[FileId], bool]:
        return lambda file: file.task == self.uid and file.kind is Kind.GLOBALPARAM and file.round == number

    def _about_versions(self) -> dict[str, Any]:
        versions = self._versions.all
        mixed = (
            f"computed by workers of several versions of fedsim: {', '.join(versions)}" if len(versions) > 1 else None
        )
        return {"version": self.plan.version, "versions": self._versions.hosts, "not_comparable": mixed}

    def _commit(self, number: int) -> None:
        record, content = self._records.close_round(number, self._roster if number else None)

        def commit() -> None:
            self._folder.commit(number, content)
            if number == 0:
                self._want()

        self.write(commit, lambda _: self._telemetry.committed(record))
        self.write_behind(lambda: self._records.write_round(record))

    # ------------------------------------------------------------ the end

    def _finish(self, finish: events.Finish) -> None:
        """Store what nodes have yet to receive, then change the row; the start-up sweep clears what a crash leaves."""
        context, last, away = self._context, self._machine.committed, finish.awaiting_final
        digest = self._records.digest(last) if finish.outcome == "completed" else None
        promise = context.stops.promise(finish.stopped_nodes, self.uid, finish.reason)

        def store() -> bool:
            if away:
                file_digest = self._records.file_digest(last)
                delivery = Delivery(task=self.uid, number=self.plan.number, round=last, digest=file_digest, nodes=away)
                context.finals.keep(delivery, self._folder.model(last))
            promise()
            state = TaskState(finish.outcome)
            return context.store.tasks.move(self.uid, state, reason=finish.reason, now=time.time(), digest=digest)

        def end(moved: bool) -> None:
            if not moved:
                self._log.warning("task_was_ended_elsewhere", outcome=finish.outcome)
            self.outcome = finish
            self.quit()
            context.stops.send(finish.stopped_nodes, self.uid, finish.reason)
            if away:
                context.finals.send(self.uid)
            self.write_behind(self._clear)
            self._event(finish.outcome, finish.reason)
            self._telemetry.finished(finish, last, headline=self._records.latest_headline, digest=digest)

        self.write(store, end)

    def _clear(self) -> None:
        self._events.keep(self._context.config.spool / "events", f"task-{self.plan.number:06d}")
        clear_task(self._context.spool, self.uid)

    # ------------------------------------------------------------ progress

    def publish_progress(self) -> float | None:
        """Record what the task is doing if it is time to; returns when it will be, None if nothing is new."""
        now = time.monotonic()
        if now < self._published_at + PROGRESS_SECONDS:
            return self._published_at + PROGRESS_SECONDS
        if not self._machine.ended:
            self._telemetry.publish_round(self.round)
            progress = self._records.new_progress(self._machine, self._waiting_for())
            if progress is not None:
                self.write_behind(lambda: self._context.store.tasks.set_progress(self.uid, progress))
                self._published_at = now
        return None

    def _waiting_for(self) -> tuple[str, ...]:
        """The nodes that have not answered, each with what keeps files from it, if something does."""
        peers = self._context.nodes.addresses
        described = []
        for node in self._machine.waiting_for:
            trouble = self._context.outbox.trouble(peers[node]) if node in peers else ""
            described.append(f"{peers[node]}: {trouble}" if trouble else node)
        return tuple(described)

    @property
    def status(self) -> str:
        """For `systemctl status`."""
        name, latest = self._records.latest_headline
        metric = "" if latest is None else f", {name} {latest:.4f}"
        rounds = self.plan.settings.num_rounds
        return f"task {self.plan.number}: {self._machine.step}, round {self._machine.round} of {rounds}{metric}"

    # ------------------------------------------------------------ from disk

    def _restored(self) -> events.Restored:
        kept = self._folder.committed()
        committed = kept[-1] if kept else -1
        folder = self._context.config.spool / "checkpoints"
        recorded = {checkpoint.round for checkpoint in self._context.store.checkpoints.of_task(self.plan.number)}
        saved = {n for n in recorded if (folder / checkpoint_name(self.plan.number, n)).with_suffix(".json").exists()}
        found = self._folder.read_roster(committed + 1)
        if found is not None:
            self._roster, gathered = found
            self._records.resume(self._roster.round, gathered)
        return events.Restored(
            committed=committed,
            counts=self._folder.read_counts(),
            roster=self._roster,
            kept=frozenset(kept),
            evaluated=frozenset(number for number in kept if self._records.is_tested(number)),
            saved=frozenset(saved),
            testset_parts=frozenset(item.id.part or "" for item in self._jobs.testset()),
            completed_phases=self._folder.completed_phases(),
        )
