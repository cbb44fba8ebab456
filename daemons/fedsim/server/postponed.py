"""Tasks that nodes keep from beginning: they wait without a place among the running ones, or begin again without them.

Everything of a postponed task stays where it is, here and on its nodes: it is resumed like after a restart. A task that
goes on without a node has another plan, and so begins again under another uid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from uuid import uuid4

from fedsim.server.approvals import Asked
from fedsim.server.context import ServerContext
from fedsim.server.task_dir import TaskDir
from fedsim.spool.clear import clear_task
from fedsim.spool.files import Kind
from fedsim.state_machines.plan import Plan
from fedsim.store.records import Task

GOES_ON = "the task begins again without a node that has missed a deadline"


class PostponedTasks:
    """The tasks that wait for nodes which have missed the deadline of the preparation."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._tasks: dict[str, tuple[Plan, Mapping[str, str]]] = {}

    def __contains__(self, uid: str) -> bool:
        """Whether this task is postponed."""
        return uid in self._tasks

    def add(self, plan: Plan, late: Mapping[str, str]) -> None:
        """A task waits for these nodes (node -> what it has missed)."""
        self._tasks[plan.task] = (plan, late)

    def drop(self, uid: str) -> tuple[str, ...]:
        """A task goes on or has ended; returns its nodes."""
        plan, _ = self._tasks.pop(uid, (None, {}))
        return () if plan is None else plan.nodes

    def clear(self) -> None:
        """Forget everything: a restart resumes all tasks, which may be postponed again."""
        self._tasks.clear()

    def waits_for(self, uid: str) -> tuple[str, ...]:
        """The nodes that have still not done what they missed, with what that is; empty if the task can be resumed."""
        plan, late = self._tasks[uid]
        return tuple(f"{node}, which {why}" for node, why in late.items() if not self._has_news(plan, node))

    def _has_news(self, plan: Plan, node: str) -> bool:
        if node not in self._context.nodes.addresses:
            return True  # the task fails when it is resumed
        hello = self._context.nodes.online().get(node)
        if hello is None:
            return False
        report = next((report for report in hello.tasks if report.task == plan.task), None)
        if report is None or report.state not in {"loading", "waiting", "ready"}:
            return True  # it is assigned again, or has given up
        if report.state != "ready":
            return False
        arrived = {item.id.part for item in self._context.spool.arrived(Kind.TESTSET, plan.task)}
        return node != plan.testset_from or arrived >= {"data", "label"}

    def begin_again(self, plan: Plan, left_out: Mapping[str, str], then: Callable[[Task | None], None]) -> None:
        """Give a task another uid, under which it is planned without these nodes, and end it at its nodes."""
        context, uid, new = self._context, plan.task, uuid4().hex
        promise = context.stops.promise(plan.nodes, uid, GOES_ON)

        def store() -> Task | None:
            promise()
            folder = TaskDir(context.spool.folder(Kind.GLOBALPARAM), new)
            folder.write_asked(Asked(left_out=dict(left_out)).model_dump(mode="json"))
            changed = context.store.tasks.start_over(uid, new)
            clear_task(context.spool, uid)
            return context.store.tasks.by_uid(new) if changed else None

        context.writer.submit(store, partial(self._begun_again, plan, then))

    def _begun_again(self, plan: Plan, then: Callable[[Task | None], None], stored: Future[Task | None]) -> None:
        task = stored.result()
        self._context.stops.send(plan.nodes, plan.task, GOES_ON)
        then(task)
