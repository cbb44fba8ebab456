"""The tasks that wait on a node until its owner approves them, or until the server begins them afterwards.

Nothing is kept but what the spool and the audit log hold: a task waits as long as its `initparam` is in the spool, and
the owner's decision is a line of the audit log, with the digest of exactly what was approved.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from fedsim.client.audit_log import AuditLog, OwnerDecision
from fedsim.config import ClientConfig
from fedsim.log import get_logger
from fedsim.messages import Assignment, TaskReport


@dataclass(frozen=True)
class PendingTask:
    """A task that has not begun here, and since when (in seconds since the epoch)."""

    assignment: Assignment
    digest: str
    state: Literal["waiting", "approved"]
    since: float


class PendingApprovals:
    """The tasks that have not begun because of a rule `require_approval`, here or on other nodes."""

    def __init__(self, audit_log: AuditLog) -> None:
        self._log = audit_log
        self._tasks: dict[str, PendingTask] = {}
        self._published: tuple[PendingTask, ...] = ()

    @property
    def waiting(self) -> list[PendingTask]:
        """Those that the owner has to decide about, oldest first."""
        return [task for task in self._tasks.values() if task.state == "waiting"]

    @property
    def reports(self) -> list[TaskReport]:
        """What the node's next `hello` reports of them."""
        return [TaskReport(task=uid, state=task.state) for uid, task in self._tasks.items()]

    def refusal(self, assignment: Assignment) -> str | None:
        """Why the owner refused exactly this task; None if they did not."""
        decision = self._log.decisions.get(assignment.digest)
        if decision is None or decision.approved:
            return None
        return f"its owner does not approve it{f': {decision.reason}' if decision.reason else ''}"

    def must_wait(self, assignment: Assignment, config: ClientConfig) -> bool:
        """Whether a task that is not refused may not begin yet; then it is noted as pending."""
        digest = assignment.digest
        accepted = self._log.accepted.get(assignment.task)
        approved = (
            not config.requires_approval(assignment.settings.dataset)
            or digest in self._log.decisions
            or (accepted is not None and accepted.digest == digest)  # before the rule was set
        )
        if approved and assignment.begin:
            return False
        before = self._tasks.get(assignment.task)
        same = before is not None and before.digest == digest
        since = before.since if before is not None and same else time.time()
        self._tasks[assignment.task] = PendingTask(assignment, digest, "approved" if approved else "waiting", since)
        if not same and not approved:
            settings = assignment.settings
            get_logger(task=assignment.number).info(
                "approval_needed", user=assignment.user, purpose=settings.purpose, dataset=settings.dataset
            )
        return True

    def drop(self, uid: str) -> None:
        """A task has begun or ended here."""
        self._tasks.pop(uid, None)

    def find(self, uid: str, digest: str) -> tuple[Assignment | None, str]:
        """The task that waits, if the owner saw exactly this one; else why nothing can be decided."""
        task = self._tasks.get(uid)
        if task is None or task.state != "waiting":
            return None, "this task does not wait for approval (any more)"
        if task.digest != digest:
            return None, "the server has changed this task since it was shown: look at it again"
        return task.assignment, ""

    def decided(self, assignment: Assignment, decision: OwnerDecision) -> None:
        """The owner's decision is durable: it applies from now on."""
        self._log.decisions[assignment.digest] = decision
        event = "task_approved" if decision.approved else "task_not_approved"
        get_logger(task=assignment.number).info(event, by=decision.by, reason=decision.reason)

    def changed(self) -> bool:
        """Whether tasks were added, decided or dropped since the last call."""
        before, self._published = self._published, tuple(self._tasks.values())
        return before != self._published
