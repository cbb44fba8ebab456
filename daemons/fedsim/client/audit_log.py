"""The audit log of what leaves this node: one line for every file, which is durable before the file is offered.

`audit.jsonl` in the spool, oldest first; fedsim only ever adds to it. Each line is chained to those before it (see
`spool.hash_chain`), and the digest of the last one is part of each `hello`, so that the server keeps it. A line says
that a file may have left from then on; the journal has a line for each receipt. A task that is accepted has a line as
well, which says who wants it and for what. What a crash has damaged is repaired when the daemon starts, and a line says
so. What the owner decides about a task is recorded here alone, with the digest of what it concerns.
"""

from __future__ import annotations

import calendar
import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedsim.log import get_logger
from fedsim.messages import Assignment
from fedsim.spool.files import FileId
from fedsim.spool.hash_chain import ChainHead, HashChain
from fedsim.state_machines.policy import AcceptedTask

TASK = "task"
APPROVAL = "approval"
REFUSAL = "refusal"
REPAIR = "repair"
_KIND = re.compile(f'"kind": "({TASK}|{APPROVAL}|{REFUSAL}|{REPAIR})"'.encode())
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class OwnerDecision:
    """What the owner decided about a task: `by` is the name of the Unix user."""

    approved: bool
    by: str
    reason: str = ""


class AuditLog:
    """The log at `path`. `open` reads it; lines are added in the writer's thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chain = HashChain(path)
        self.accepted: dict[str, AcceptedTask] = {}
        self.decisions: dict[str, OwnerDecision] = {}  # by the digest of the assignment

    @property
    def head(self) -> ChainHead:
        """The number of lines and the digest of the last one, which covers all of them."""
        return self._chain.head

    def open(self) -> Self:
        """Check the log, and record in it what is found damaged for the first time."""
        found: dict[str, list[str]] = {kind: [] for kind in (TASK, APPROVAL, REFUSAL, REPAIR)}

        def visit(line: bytes) -> None:
            if (kind := _KIND.search(line)) is not None:
                found[kind[1].decode()].append(line.decode(errors="replace"))

        problems = self._chain.open(visit)
        recorded = "\n".join(found[REPAIR])
        if new := [problem for problem in problems if problem not in recorded]:
            get_logger().error("audit_log_repaired", file=str(self.path), problem="; ".join(new))
            self._chain.append([{"at": _now(), "kind": REPAIR, "problems": new}])
        self.accepted = {task.uid: task for line in found[TASK] if (task := _accepted(line)) is not None}
        for line in (*found[APPROVAL], *found[REFUSAL]):
            self.decisions.update(_decided(line))
        return self

    def decide(self, assignment: Assignment, server: str, decision: OwnerDecision) -> None:
        """Durably record what the owner decided about a task; called in the writer's thread."""
        kind = APPROVAL if decision.approved else REFUSAL
        line = {**_about(kind, assignment, server), "by": decision.by, "reason": decision.reason or None}
        self.add([line])

    def accept(self, assignment: Assignment, server: str) -> list[dict[str, Any]]:
        """Count a task as accepted; returns the line to be added for it, none if it was accepted before."""
        if assignment.task in self.accepted:
            return []
        dataset = assignment.settings.dataset
        task = AcceptedTask(time.time(), assignment.task, dataset, assignment.user, assignment.digest)
        self.accepted[assignment.task] = task
        return [_about(TASK, assignment, server)]

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Durably add lines, without fields that are None."""
        self._chain.append({key: value for key, value in line.items() if value is not None} for line in lines)


@dataclass(frozen=True)
class OfferedFile:
    """A file that is about to be offered to the server: `source` is its path or its bytes."""

    id: FileId
    source: Path | bytes
    size: int
    num_examples: int | None = None
    meta: dict[str, Any] | None = None
    digest: str | None = None


def _about(kind: str, assignment: Assignment, server: str) -> dict[str, Any]:
    """A line on a task as a whole."""
    return {
        "at": _now(),
        "from": server,
        "kind": kind,
        "task": assignment.number,
        "uid": assignment.task,
        "dataset": assignment.settings.dataset,
        "user": assignment.user,
        "purpose": assignment.settings.purpose,
        "digest": assignment.digest,
    }


def audit_line(file: OfferedFile, assignment: Assignment, server: str) -> dict[str, Any]:
    """The line for a file of a task."""
    return {
        "at": _now(),
        "to": server,
        "kind": file.id.kind.value,
        "task": assignment.number,
        "uid": assignment.task,
        "dataset": assignment.settings.dataset,
        "round": file.id.round,
        "chunk": file.id.chunk,
        "client": file.id.client,
        "part": file.id.part,
        "phase": file.id.phase,
        "num_examples": file.num_examples,
        "bytes": file.size,
    }


def _accepted(line: str) -> AcceptedTask | None:
    """The task that a line records; None if the line is damaged, which is recorded already."""
    try:
        found = json.loads(line)
        at = calendar.timegm(time.strptime(found["at"], _TIME))
        return AcceptedTask(at, found["uid"], found["dataset"], found["user"], found.get("digest", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _decided(line: str) -> dict[str, OwnerDecision]:
    """What a line records as decided, by its digest; nothing if the line is damaged."""
    try:
        found = json.loads(line)
        decision = OwnerDecision(found["kind"] == APPROVAL, str(found["by"]), str(found.get("reason", "")))
        return {str(found["digest"]): decision}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _now() -> str:
    return time.strftime(_TIME, time.gmtime())
