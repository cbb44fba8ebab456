"""The claimed tasks that do not run: they wait for nodes, for owners, for late nodes; and how such a task ends."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import MappingProxyType

from fedsim.log import get_logger
from fedsim.runtime.bulkhead import bulkhead
from fedsim.server.approvals import OwnersApprovals, approvers
from fedsim.server.context import ServerContext
from fedsim.server.planning import plan_task
from fedsim.server.postponed import PostponedTasks
from fedsim.server.speed_requests import SpeedRequests
from fedsim.server.task import ServerTask
from fedsim.server.task_dir import TaskDir
from fedsim.spool.clear import clear_task
from fedsim.spool.files import Kind
from fedsim.state_machines.candidates import Impossible, Measuring, Waiting
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.policy import can_do_without, not_continued
from fedsim.store.records import Event, Progress, Resumable, Task, TaskState
from fedsim.worker.inspector import Inspected

GONE = "its state is no longer on this server: run it again"


class WaitingTasks(ABC):
    """Tasks between their claim and their start. `own` are the server's data sets."""

    def __init__(self, context: ServerContext) -> None:
        self.own: Inspected | None = None
        self.waiting: dict[str, Task] = {}
        self.approvals = OwnersApprovals(context)
        self.postponed = PostponedTasks(context)
        self.speeds = SpeedRequests(context)
        self._reasons: dict[str, str] = {}
        self._late: dict[int, dict[str, str]] = {}  # by the task's number: nodes that were left out, and why
        self._context = context
        self._log = get_logger()

    @property
    @abstractmethod
    def _may_run_more(self) -> bool:
        """Whether there is a place among the running tasks."""

    @abstractmethod
    def _run(self, plan: Plan) -> ServerTask:
        """Make a running task of a plan."""

    @abstractmethod
    def _resume(self, task: Task) -> None:
        """Continue a task from its folder."""

    def start_waiting(self) -> None:
        """Plan the claimed tasks, oldest first, as far as nodes and the limit allow."""
        if self.own is None:
            return
        for task in sorted(self.waiting.values(), key=lambda task: task.number):
            if self._may_run_more or task.uid in self.approvals:
                self._plan(task, self.own)

    def _folder(self, uid: str) -> TaskDir:
        return TaskDir(self._context.spool.folder(Kind.GLOBALPARAM), uid)

    def _clear_waiting(self) -> None:
        """Forget the tasks that wait: they are read again."""
        self.waiting.clear()
        self.approvals.clear()
        self.postponed.clear()
        self.speeds.clear()
        self._reasons.clear()

    def _drop_waiting(self, uid: str) -> bool:
        self._reasons.pop(uid, None)
        self.speeds.drop(uid)
        return self.waiting.pop(uid, None) is not None

    def _plan(self, task: Task, own: Inspected) -> None:
        """Plan a claimed task, and start it if it can run now."""
        with bulkhead(partial(self._end_waiting, task, TaskState.FAILED)):
            self._try_to_plan(task, own)

    def _try_to_plan(self, task: Task, own: Inspected) -> None:
        if task.uid in self.approvals:
            self._await_owners(task, own)
        elif task.uid in self.postponed:
            self._await_late(task)
        elif task.resume_uid == task.uid:
            self._restore(task)
        elif (plan := self._make_plan(task, own)) is not None:
            self._begin_or_ask(task, plan)

    def _make_plan(self, task: Task, own: Inspected, without: Mapping[str, str] = MappingProxyType({})) -> Plan | None:
        """Plan a task for the nodes that are online; None if it has to wait, or has ended because it is impossible.

        Args:
            task: that was claimed.
            own: the server's data sets.
            without: further nodes that are not to take part, and why; the task goes on waiting if it needs them.
        """
        left_out = {**self.approvals.left_out(task.uid), **without}
        match plan_task(self._context, task, own, left_out, self.speeds.late(task.uid)):
            case Plan() as plan:
                return plan
            case Measuring(reason, requests) if not without:
                self.speeds.ask(task.number, requests)
                self._wait(task, reason)
            case Waiting(reason) if not without:
                self._wait(task, reason)
            case Impossible(reason) if not without:
                self._end_waiting(task, TaskState.FAILED, reason)
        return None

    # ------------------------------------------------------------ nodes that are late before round 1

    def _postpone(self, plan: Plan, late: Mapping[str, str]) -> None:
        """Go on without nodes that have missed the deadline of the preparation, if that is possible; else wait."""
        task = self._context.store.tasks.by_uid(plan.task)
        if task is None or task.state.finished or self.own is None:
            return
        problem = "; ".join(f"{name} {why}" for name, why in late.items())
        self._log.warning("nodes_late", task=plan.number, problem=problem)
        event = Event(time.time(), "nodes_late", problem, task=plan.number)
        self._context.writer.submit(partial(self._context.store.events.add, event))
        left_out = {**self._late.get(plan.number, {}), **late}
        if can_do_without(task.settings, self._context.nodes.addresses, left_out) and isinstance(
            plan_task(self._context, task, self.own, left_out), Plan
        ):
            self._late[plan.number] = left_out
            self.postponed.begin_again(plan, left_out, self._begun_again)
        else:
            self.waiting[task.uid] = task
            self.postponed.add(plan, late)
            self._await_late(task)

    def _begun_again(self, task: Task | None) -> None:
        if task is not None:
            self.approvals.restore(task.uid)
            self.waiting[task.uid] = task
            self.start_waiting()

    def _await_late(self, task: Task) -> None:
        if waits_for := self.postponed.waits_for(task.uid):
            self._wait(task, "; ".join(waits_for), Progress(task.round, "waiting", waits_for))
        else:
            self.postponed.drop(task.uid)
            self._resume(task)

    # ------------------------------------------------------------ approval by the nodes' owners

    def _begin_or_ask(self, task: Task, plan: Plan) -> None:
        if approvers(plan):
            self.approvals.ask(plan)
            self._wait_for_owners(task)
        else:
            self._drop_waiting(task.uid)
            self._stop_asked(self.approvals.take(task.uid), plan)
            self._run(plan).start()

    def _stop_asked(self, nodes: Sequence[str], plan: Plan) -> None:
        """End the task at nodes whose owners were asked, and which now take no part."""
        gone = [name for name in nodes if name not in plan.nodes]
        self._context.stops.send(gone, plan.task, "the task goes on without this node")

    def _await_owners(self, task: Task, own: Inspected) -> None:
        """Begin a task that all owners have approved; go on without the nodes of others, where that is possible."""
        plan, answers = self.approvals.plan(task.uid), self.approvals.answers(task.uid)
        rounds = self._folder(task.uid).committed()  # of a task that is resumed, whose nodes are fixed
        if answers.refused:
            left_out = {**self.approvals.left_out(task.uid), **answers.refused}
            if rounds or not can_do_without(task.settings, self._context.nodes.addresses, left_out):
                reason = "; ".join(f"node {name} {why}" for name, why in answers.refused.items())
                self._end_waiting(task, TaskState.FAILED, reason)
                return
            self._leave_out(task, answers.refused)
            self._try_to_plan(task, own)
        elif not answers.missing:
            if not self._may_run_more:
                self._wait(task, "a place among the running tasks")
                return
            self._drop_waiting(task.uid)
            self._stop_asked(self.approvals.take(task.uid), plan)
            running = self._run(plan)
            running.resume() if rounds else running.start()
        elif answers.late and not rounds and (other := self._make_plan(task, own, answers.late)) is not None:
            self._leave_out(task, answers.late)
            self._begin_or_ask(task, other)
        else:
            self._wait_for_owners(task)

    def _leave_out(self, task: Task, nodes: Mapping[str, str]) -> None:
        self._context.stops.send(nodes, task.uid, "the task goes on without this node")
        self.approvals.leave_out(task.uid, nodes)
        self._log.info("nodes_left_out", task=task.number, nodes=", ".join(nodes))

    def _wait_for_owners(self, task: Task) -> None:
        answers = self.approvals.answers(task.uid)
        names = tuple(f"the approval of {name}'s owner" for name in answers.missing)
        self._wait(task, ", ".join(names), Progress(task.round, "approval", names, round(answers.until)))

    def _wait(self, task: Task, reason: str, progress: Progress | None = None) -> None:
        if reason != self._reasons.get(task.uid):
            self._log.info("task_waits", task=task.number, reason=reason)
            progress = progress or Progress(task.round, "waiting", waiting_for=(reason,))
            self._context.writer.submit(partial(self._context.store.tasks.set_progress, task.uid, progress))
            self._reasons[task.uid] = reason

    def _restore(self, task: Task) -> None:
        """Go on with a task that a user resumed or continued, from its kept state, once its nodes are online."""
        if offline := [node for node in task.nodes if node not in self._context.nodes.online()]:
            configured = [node for node in offline if node in self._context.nodes.addresses]
            if configured == offline:  # otherwise it fails: a node is no longer in server.yml
                self._wait(task, f"{', '.join(offline)} took part and must be online")
                return
        folder = self._folder(task.uid)
        if folder.raw_plan() is None and not self._context.kept.restore(task.number, folder, task.settings.num_rounds):
            self._end_waiting(task, TaskState.FAILED, GONE, resumable=Resumable(problem=GONE))
            return
        plan = folder.read_plan()
        if plan is not None and approvers(plan):
            self.approvals.ask(plan)
            self._wait_for_owners(task)
        else:
            self._resume(task)

    # ------------------------------------------------------------ the end

    def _end_waiting(self, task: Task, state: TaskState, reason: str, *, resumable: Resumable | None = None) -> None:
        """End a task that waits, also at the nodes whose owners were asked."""
        nodes = (*self.approvals.drop(task.uid), *self.postponed.drop(task.uid))
        self._drop_waiting(task.uid)
        self._end_early(task, state, reason, nodes, resumable)

    def _end_early(
        self,
        task: Task,
        state: TaskState,
        reason: str,
        nodes: Sequence[str] = (),
        resumable: Resumable | None = None,
    ) -> None:
        """End a task that does not run, keeping its state if it has one; `nodes` may hold it and are sent a stop."""
        store, stops = self._context.store, self._context.stops
        promise = stops.promise(nodes, task.uid, reason)

        def end() -> TaskState:
            promise()
            kept, folder, now = resumable, self._folder(task.uid), time.time()
            if folder.committed():
                kept = self._context.kept.keep(task.number, folder)
            outcome, why, rounds, digest = state, reason, None, None
            if state is TaskState.FAILED and (before := folder.completed_before()) is not None:
                rounds, digest = before
                outcome, why = TaskState.COMPLETED, not_continued(rounds, reason)
                store.tasks.move(task.uid, TaskState.RUNNING, now=now)  # from which alone a task is completed
            store.tasks.move(task.uid, outcome, reason=why, now=now, resumable=kept, digest=digest, num_rounds=rounds)
            clear_task(self._context.spool, task.uid)
            store.events.add(Event(now, outcome.value, why, task=task.number))
            return outcome

        def ended(future: Future[TaskState]) -> None:
            outcome = future.result().value
            stops.send(nodes, task.uid, reason)
            self._log.info("task_finished", task=task.number, outcome=outcome, reason=reason)
            self._context.metrics.ended.labels(outcome).inc()

        self._context.writer.submit(end, ended)
