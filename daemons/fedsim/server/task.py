"""One running task on the server: turns what happens into the course's events, and carries out its actions.

Nothing is decided here; see `fedsim.state_machines.task`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from fedsim.errors import BadInput, DiskFull
from fedsim.messages import Broadcast, TaskReport, read_message
from fedsim.server.context import Platform
from fedsim.server.finals import Delivery
from fedsim.server.projection import TaskRecords, checkpoint_name
from fedsim.server.task_dir import TaskDir
from fedsim.server.task_jobs import TaskWork
from fedsim.server.telemetry import Story
from fedsim.server.worker_versions import TaskVersions
from fedsim.spool.allowlist import want
from fedsim.spool.clear import clear_file, clear_round, clear_task
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Arrived
from fedsim.spool.npy import open_vector
from fedsim.state_machines import task_events as course
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task import Restored, TaskMachine
from fedsim.store.records import TaskState
from fedsim.update import Update
from fedsim.wire.sender import Outcome, Status
from fedsim.worker import jobs
from fedsim.worker.pool import WorkerPool

SHOW_SECONDS = 0.25
SHOWN_MISSING = 50  # the round's record names all


class RunningTask:
    """A task between its plan and its end."""

    def __init__(self, plan: Plan, platform: Platform, workers: WorkerPool) -> None:
        self.plan = plan
        self.uid = plan.task
        self.outcome: course.Finish | None = None
        self._platform = platform
        self._workers = workers
        self._folder = TaskDir(platform.spool.folder(Kind.GLOBALPARAM), plan.task)
        self._records = TaskRecords(plan, self._folder, platform.store)
        self._versions = TaskVersions(plan, self._folder)
        self._work = TaskWork(plan, platform, self._folder, workers)
        self._roster: course.WriteRoster | None = None
        self._course = TaskMachine(plan, self._restored(), own_testset=plan.testset_from is None)
        self._updates: dict[Path, Arrived] = {}
        self._held_saves: set[int] = set()
        self._final_round = plan.settings.num_rounds + 1
        self._shown_at = 0.0
        self._story = Story(plan, platform.metrics)
        self._log = self._story.log

    # ------------------------------------------------------------ its life

    @property
    def round(self) -> int:
        """The round that is under way."""
        return self._course.round

    @property
    def wake_at(self) -> float | None:
        """When `tick` is due (time.monotonic)."""
        return self._course.wake_at

    def start(self) -> None:
        """Begin, or take up again what a restart found."""
        again = self._course.committed >= 0
        self._story.begins(self._course.round, again=again)
        self._records.event("resumed" if again else "started", f"on the nodes {', '.join(self.plan.nodes)}")
        self._worked("the server", self._workers.versions)
        if self._course.counts is not None:  # a crash may have come between the counts and the row
            self._platform.store.tasks.move(self.uid, TaskState.RUNNING, now=time.time())
        self._want()
        self._do(self._course.begin(time.monotonic()))
        self._look_for_testset()
        for item in self._platform.spool.arrived(Kind.LOCALPARAM, self.uid):
            self.arrived(item)

    def _want(self) -> None:
        """Let the receiver take what the nodes are about to be asked for; updates as soon as there is a model."""
        asked = self.plan.testset_from
        kinds: dict[Kind, Collection[str]] = {Kind.LOCALPARAM: self.plan.nodes}
        if asked is not None:
            kinds[Kind.TESTSET] = (asked,)
        committed = self._folder.committed()
        length = len(open_vector(self._folder.model(committed[-1]))) if committed else None
        want(self._platform.spool, self.uid, kinds, num_parameters=length)

    def tick(self) -> None:
        """Time has passed."""
        self._happened(course.TimePassed())

    def node_reported(self, node: str, report: TaskReport | None) -> None:
        """A node announced itself."""
        if self.outcome is not None:
            return
        if report is not None and node in self.plan.nodes:
            self._worked(node, report.versions)
        self._happened(course.NodeReported(node, report))

    def stop(self, reason: str) -> None:
        """Somebody wants the task to end."""
        self._happened(course.StopRequested(reason))

    def broken(self, reason: str) -> None:
        """The task cannot go on."""
        self._happened(course.Broken(reason))

    def arrived(self, item: Arrived) -> None:
        """A file of this task has come."""
        if item.id.kind is Kind.TESTSET:
            self._look_for_testset()
        elif item.path not in self._updates:
            self._update_arrived(item)

    def _look_for_testset(self) -> None:
        if {item.id.part for item in self._work.testset()} == {"data", "label"}:
            self._happened(course.TestsetArrived())

    def _update_arrived(self, item: Arrived) -> None:
        if self.outcome is not None or (item.id.round or 0) <= self._course.committed:
            clear_file(item.path)  # too late; its metadata may have been cleared before it came
            return
        try:
            metadata = item.metadata()
            update = read_message(Update, metadata.meta, f"the metadata of {item.path.name}")
        except BadInput as error:
            self._log.warning("update_refused", file=item.path.name, problem=str(error))
            clear_file(item.path)
            return
        self._updates[item.path] = item
        file = item.id
        self._happened(
            course.UpdateArrived(
                metadata.sender,
                file.round or 0,
                file.chunk or 0,
                file.client,
                metadata.digest,
                update.metrics.get("train_loss", 0.0),
            )
        )

    def sent(self, outcome: Outcome) -> None:
        """A transfer of this task has ended."""
        file = outcome.file_id
        self._story.sent(outcome)
        if file.kind is Kind.GLOBALPARAM and file.round is not None:
            self._records.sent(file.round, outcome.bytes_sent)
            if outcome.delivered and file.round == self._final_round:
                self._happened(course.FinalDelivered(outcome.peer.name))
        if outcome.status is Status.REFUSED:
            self._happened(course.NodeRefused(outcome.peer.name, f"the {file.kind}: {outcome.message}"))

    def workers_ready(self) -> None:
        """A worker answered, or died."""
        replies, broken = self._workers.replies()
        self._worked("the server", self._workers.versions)
        for reply in replies:
            if self.outcome is None:  # an earlier one may have ended the task
                self._worker_replied(reply)
        if broken is not None:
            self.broken(broken)

    def _worker_replied(self, reply: jobs.Reply) -> None:
        match reply:
            case jobs.ModelMade():
                self._records.made(reply)
                made_first = reply.round == 0
                self._happened(
                    course.InitialModelMade() if made_first else course.Aggregated(reply.round, finite=reply.finite)
                )
            case jobs.Tested():
                self._story.tested(self._records.tested(reply))
                if reply.round in self._held_saves:
                    self._save(reply.round)
                self._happened(course.Evaluated(reply.round))
            case jobs.CheckpointSaved():
                self._records.saved(reply)
                self._story.saved(reply)
                self._happened(course.Saved(reply.round))
            case jobs.JobFailed(disk_full=True, reason=reason):
                raise DiskFull(reason)
            case jobs.JobFailed():
                self._happened(course.Broken(reply.reason))

    def _worked(self, who: str, versions: Collection[str]) -> None:
        """Somebody computes with workers of these versions of fedsim."""
        text = self._versions.worked(who, versions)
        if text is not None:
            self._log.warning("other_version", who=who, problem=text)
            self._records.event("version", f"{text}: its result is not comparable with others")

    # ------------------------------------------------------------ carrying out

    def _happened(self, event: course.Event) -> None:
        if self.outcome is None:
            self._do(self._course.handle(event, time.monotonic()))

    def _do(self, actions: list[course.Action]) -> None:
        for action in actions:
            self._do_one(action)

    def _do_one(self, action: course.Action) -> None:
        match action:
            case course.Assign(node):
                body = self.plan.assignment(node).model_dump_json().encode()
                self._send(node, FileId(kind=Kind.INITPARAM, task=self.uid), body)
            case course.MakeInitialModel():
                self._work.make_initial_model()
            case course.RecordCounts(counts):
                self._folder.write_counts(counts)
                self._platform.store.tasks.move(self.uid, TaskState.RUNNING, now=time.time())
            case course.SendGlobal(node, number, broadcast):
                self._send_model(node, number, broadcast)
            case course.WriteRoster():
                self._write_roster(action)
            case course.Aggregate(number, entries):
                self._work.aggregate(number, entries)
            case course.Commit(number):
                self._commit(number)
            case course.ClearUpdates(through):
                spool = self._platform.spool
                numbers = {item.id.round or 0 for item in spool.arrived(Kind.LOCALPARAM, self.uid)}
                for number in numbers & set(range(through + 1)):
                    clear_round(spool, Kind.LOCALPARAM, self.uid, number)
                self._updates.clear()
            case course.Discard(update):
                path = self._work.update_path(update.node, update.round, update.chunk, update.client)
                self._updates.pop(path, None)
                clear_file(path)
            case course.Evaluate(number):
                self._work.evaluate(number)
            case course.Save(number):
                # The checkpoint tells its metrics: where a test is on its way, it waits for that.
                if self._course.evaluation_due(number) and not self._records.is_tested(number):
                    self._held_saves.add(number)
                else:
                    self._save(number)
            case course.ClearModel(number):
                self._folder.remove_round(number)
            case course.SendFinal(node, number):
                self._send_model(node, number + 1, Broadcast(used_through=number, final=True))
            case course.Note(kind, text):
                self._log.warning(kind, problem=text)
                self._records.event(kind, text)
            case course.Finish():
                self._finish(action)

    def _send(self, node: str, file: FileId, source: bytes) -> None:
        self._platform.outbox.send(self._platform.nodes.addresses[node], file, source)

    def _send_model(self, node: str, number: int, broadcast: Broadcast) -> None:
        """Round `number`'s global model is the model that the round before it made."""
        self._platform.outbox.send(
            self._platform.nodes.addresses[node],
            FileId(kind=Kind.GLOBALPARAM, task=self.uid, round=number),
            self._folder.model(number - 1),
            meta=broadcast.model_dump(mode="json"),
            digest=self._records.file_digest(number - 1),
        )

    def _write_roster(self, roster: course.WriteRoster) -> None:
        received = sum(item.path.stat().st_size for item in self._updates.values() if item.id.round == roster.round)
        self._folder.write_roster(roster, self._records.closed(roster.round, received))
        self._roster = roster
        if roster.missing:
            missing = ", ".join(map(str, roster.missing[:SHOWN_MISSING]))
            if (more := len(roster.missing) - SHOWN_MISSING) > 0:
                missing += f" and {more} more"
            self._log.warning("round_closed_without", round=roster.round, clients=missing)
            self._records.event("missing", f"round {roster.round} went on without the clients {missing}")
        # Whoever has not got the round's model by now need not get it any more.
        self._platform.outbox.cancel(self._is_global(roster.round))

    def _is_global(self, number: int) -> Callable[[FileId], bool]:
        return lambda file: file.task == self.uid and file.kind is Kind.GLOBALPARAM and file.round == number

    def _save(self, number: int) -> None:
        self._held_saves.discard(number)
        self._work.save(number, {**self._records.about(number), **self._versions.about()})

    def _commit(self, number: int) -> None:
        self._story.committed(self._records.commit(number, self._roster if number else None))
        if number == 0:
            self._want()

    # ------------------------------------------------------------ the end

    def _finish(self, finish: course.Finish) -> None:
        """What nodes are owed, then the row; what a crash then leaves behind, the start-up sweep clears."""
        self.outcome = finish
        completed = finish.outcome == "completed"
        digest = self._records.digest(self._course.committed) if completed else None
        away = self._course.undelivered if completed else ()
        if away:
            self._keep_final(away)
        over_for = self._course.without_final if completed else self.plan.nodes
        self._platform.stops.promise(over_for, self.uid, finish.reason)
        moved = self._platform.store.tasks.move(
            self.uid, TaskState(finish.outcome), reason=finish.reason, now=time.time(), digest=digest
        )
        if not moved:
            self._log.warning("task_was_ended_elsewhere", outcome=finish.outcome)
        self._workers.close()
        self._platform.outbox.cancel(lambda file: file.task == self.uid)
        self._platform.stops.tell(over_for, self.uid, finish.reason)
        if away:
            self._platform.finals.send(self.uid)
        clear_task(self._platform.spool, self.uid)
        self._records.event(finish.outcome, finish.reason)
        self._story.finished(finish, self._course.committed, accuracy=self._records.latest_accuracy, digest=digest)
        self._story.pauses()

    def _keep_final(self, nodes: tuple[str, ...]) -> None:
        last = self._course.committed
        delivery = Delivery(
            task=self.uid, number=self.plan.number, round=last, digest=self._records.file_digest(last), nodes=nodes
        )
        self._platform.finals.keep(delivery, self._folder.model(last))

    def let_go(self) -> None:
        """End the workers and transfers without ending the task: it is taken up again later."""
        self._workers.close()
        self._platform.outbox.cancel(lambda file: file.task == self.uid)
        self._story.pauses()

    # ------------------------------------------------------------ what a person sees

    def show(self) -> float | None:
        """Write what the task is doing if it is time to; returns when it will be, None if nothing is new."""
        now = time.monotonic()
        if now < self._shown_at + SHOW_SECONDS:
            return self._shown_at + SHOW_SECONDS
        if self.outcome is None:
            self._story.is_in(self.round)
            if self._records.show(self._course, self._waiting_for()) is not None:
                self._shown_at = now
        return None

    def _waiting_for(self) -> tuple[str, ...]:
        """The nodes that have not answered, each with what keeps files from it, if something does."""
        peers = self._platform.nodes.addresses
        told = []
        for node in self._course.waiting_for:
            trouble = self._platform.outbox.trouble(peers[node]) if node in peers else ""
            told.append(f"{peers[node]}: {trouble}" if trouble else node)
        return tuple(told)

    @property
    def status(self) -> str:
        """For `systemctl status`."""
        latest = self._records.latest_accuracy
        accuracy = "" if latest is None else f", accuracy {latest:.4f}"
        rounds = self.plan.settings.num_rounds
        return f"task {self.plan.number}: {self._course.phase}, round {self._course.round} of {rounds}{accuracy}"

    # ------------------------------------------------------------ from disk

    def _restored(self) -> Restored:
        kept = self._folder.committed()
        committed = kept[-1] if kept else -1
        folder = self._platform.config.spool / "checkpoints"
        recorded = {checkpoint.round for checkpoint in self._platform.store.checkpoints.of_task(self.plan.number)}
        saved = {n for n in recorded if (folder / checkpoint_name(self.plan.number, n)).with_suffix(".json").exists()}
        found = self._folder.read_roster(committed + 1)
        if found is not None:
            self._roster, gathered = found
            self._records.resume(self._roster.round, gathered)
        return Restored(
            committed=committed,
            counts=self._folder.read_counts(),
            roster=self._roster,
            kept=frozenset(kept),
            evaluated=frozenset(number for number in kept if self._records.is_tested(number)),
            saved=frozenset(saved),
        )
