"""The audit log of what leaves this node: one line for every file, which is durable before the file is offered.

`audit.jsonl` in the spool, oldest first; fedsim only ever adds to it. Each line is chained to those before it (see
`spool.hash_chain`), and the digest of the last one is part of each `hello`, so that the server keeps it. A line says
that a file may have left from then on; the journal has a line for each receipt. What a crash has damaged is repaired
when the daemon starts, and a line says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedsim.log import get_logger
from fedsim.messages import Assignment
from fedsim.spool.files import FileId
from fedsim.spool.hash_chain import ChainHead, HashChain


class AuditLog:
    """The log at `path`. `open` reads it; lines are added in the writer's thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chain = HashChain(path)

    @property
    def head(self) -> ChainHead:
        """The number of lines and the digest of the last one, which covers all of them."""
        return self._chain.head

    def open(self) -> Self:
        """Check the log, and record in it what is found damaged for the first time."""
        problems = self._chain.open()
        if problems and (new := [problem for problem in problems if problem not in self._recorded()]):
            get_logger().error("audit_log_repaired", file=str(self._path), problem="; ".join(new))
            self._chain.append([{"at": _now(), "kind": "repair", "problems": new}])
        return self

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Durably add lines, without fields that are None."""
        self._chain.append({key: value for key, value in line.items() if value is not None} for line in lines)

    def _recorded(self) -> str:
        """The lines that record repairs."""
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(line for line in lines if '"kind": "repair"' in line)


@dataclass(frozen=True)
class OfferedFile:
    """A file that is about to be offered to the server: `source` is its path or its bytes."""

    id: FileId
    source: Path | bytes
    size: int
    num_examples: int | None = None
    meta: dict[str, Any] | None = None
    digest: str | None = None


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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
