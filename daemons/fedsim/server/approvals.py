"""Tasks that wait for the approval of nodes' owners, before they begin and without a place among the running tasks.

The plan is made first, because an owner approves exactly what a node is to do. It is stored in the task's folder with
the nodes that are left out by now, so that a restarted server asks for the same; see `asked.json` in `task_dir`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field

from fedsim.durations import DAY_SECONDS
from fedsim.messages import Message, Name, Seconds, TaskReport, Text, read_message
from fedsim.server.context import ServerContext
from fedsim.server.task_dir import TaskDir
from fedsim.server.task_outbox import send_assignment
from fedsim.spool.files import Kind
from fedsim.state_machines.plan import Plan


def approvers(plan: Plan) -> tuple[str, ...]:
    """The nodes whose owners must approve the plan before it begins."""
    return tuple(share.node for share in plan.shares if share.approval)


class Asked(Message):
    """What is asked of owners: `plan`, None while a new one is made; `nodes` were asked and may hold the task."""

    plan: Plan | None = None
    asked_at: Seconds = 0.0
    nodes: tuple[Name, ...] = ()
    left_out: Annotated[dict[Name, Text], Field(default_factory=dict)]


@dataclass(frozen=True)
class OwnersAnswers:
    """The answers of the owners so far.

    Attributes:
        refused: the nodes that do not take part, and why.
        missing: the nodes whose owners have not answered.
        late: those of them that have missed the deadline, with the reason for leaving them out.
        until: the deadline, in seconds since the epoch.
    """

    refused: Mapping[str, str]
    missing: tuple[str, ...]
    late: Mapping[str, str]
    until: float


class OwnersApprovals:
    """The tasks whose plans owners are asked to approve; `in` says whether a task is one of them."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._asked: dict[str, Asked] = {}
        self._reports: dict[tuple[str, str], TaskReport] = {}

    def __contains__(self, uid: str) -> bool:
        """Whether owners have a plan of this task to approve."""
        return uid in self._asked and self._asked[uid].plan is not None

    def plan(self, uid: str) -> Plan:
        """What owners are asked to approve."""
        plan = self._asked[uid].plan
        if plan is None:
            raise KeyError(uid)
        return plan

    def left_out(self, uid: str) -> Mapping[str, str]:
        """The nodes that take no part because of their owners, and why."""
        return self._asked[uid].left_out if uid in self._asked else {}

    def ask(self, plan: Plan) -> None:
        """Durably record a plan, then ask the owners for their approval."""
        before = self._asked.get(plan.task, Asked(left_out={}))
        nodes = tuple(dict.fromkeys((*before.nodes, *approvers(plan))))
        asked = Asked(plan=plan, asked_at=time.time(), nodes=nodes, left_out=before.left_out)
        self._forget_reports(plan.task)
        self._asked[plan.task] = asked

        def send() -> None:
            if self._asked.get(plan.task) is asked:
                for node in approvers(plan):
                    self._send(plan, node)

        self._store(plan.task, asked, send)

    def leave_out(self, uid: str, nodes: Mapping[str, str]) -> None:
        """Durably record nodes that take no part; a new plan is to be made without them."""
        before = self._asked[uid]
        left_out = {**before.left_out, **nodes}
        kept = tuple(name for name in before.nodes if name not in nodes)
        self._asked[uid] = before.model_copy(update={"plan": None, "nodes": kept, "left_out": left_out})
        self._store(uid, self._asked[uid])

    def take(self, uid: str) -> tuple[str, ...]:
        """The task begins: forget what was asked; returns the nodes whose owners were asked."""
        nodes = self.drop(uid)
        if nodes:
            self._context.writer.submit(self._folder(uid).remove_asked)
        return nodes

    def drop(self, uid: str) -> tuple[str, ...]:
        """The task has ended: forget what was asked, not the file; returns the nodes whose owners were asked."""
        self._forget_reports(uid)
        asked = self._asked.pop(uid, None)
        return () if asked is None else asked.nodes

    def clear(self) -> None:
        """Forget everything; `restore` reads it again."""
        self._asked.clear()
        self._reports.clear()

    def restore(self, uid: str) -> bool:
        """Read what was asked before a restart; returns whether the task waits for owners, or for a new plan."""
        content = self._folder(uid).read_asked()
        if content is None:
            return False
        self._asked[uid] = read_message(Asked, content, "asked.json")
        return True

    def node_reported(self, node: str, reports: Mapping[str, TaskReport]) -> None:
        """Note what a node reports of the tasks that its owner is asked for; send it again what it does not know."""
        for uid, asked in self._asked.items():
            if asked.plan is None or node not in approvers(asked.plan):
                continue
            if uid in reports:
                self._reports[uid, node] = reports[uid]
            else:
                self._send(asked.plan, node)

    def answers(self, uid: str) -> OwnersAnswers:
        """The answers of the owners by now."""
        plan, asked = self.plan(uid), self._asked[uid]
        days = self._context.config.approval_days
        until = asked.asked_at + days * DAY_SECONDS
        refused, missing = {}, []
        for node in approvers(plan):
            report = self._reports.get((uid, node))
            if node not in self._context.nodes.addresses:
                refused[node] = "is no longer listed in server.yml"
            elif report is None or report.state in {"waiting", "loading"}:  # a refusal begins with loading
                missing.append(node)
            elif report.state in {"refused", "failed", "diverged"}:
                refused[node] = f"{report.state} it: {report.reason}"
        why = f"does not have the approval of its owner, for which server.yml gives {days:g} days"
        late = dict.fromkeys(missing, why) if time.time() > until else {}
        return OwnersAnswers(refused, tuple(missing), late, until)

    def _send(self, plan: Plan, node: str) -> None:
        if node in self._context.nodes.addresses:
            send_assignment(self._context, plan, node, begin=False)

    def _store(self, uid: str, asked: Asked, then: Callable[[], None] = lambda: None) -> None:
        def stored(future: Future[None]) -> None:
            future.result()
            then()

        content = asked.model_dump(mode="json")
        self._context.writer.submit(partial(self._folder(uid).write_asked, content), stored)

    def _folder(self, uid: str) -> TaskDir:
        return TaskDir(self._context.spool.folder(Kind.GLOBALPARAM), uid)

    def _forget_reports(self, uid: str) -> None:
        self._reports = {key: report for key, report in self._reports.items() if key[0] != uid}
