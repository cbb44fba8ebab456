"""The audit log of what left this node: one line for every file that a server received.

`audit.jsonl` in the spool, oldest first; fedsim only ever adds to it. The journal has the same lines.
No file is missing: one that may have left but was not acknowledged when it is cleared has a line with
`acknowledged: false`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.log import get_logger
from fedsim.messages import Assignment
from fedsim.spool.durable import write_all
from fedsim.spool.files import FileId
from fedsim.wire.sender import Outcome


class AuditLog:
    """Adds lines to the log at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = get_logger()
        self._unwritten = b""

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Add lines, without fields that are None; lines that do not fit on the disk are written with the next ones."""
        for line in lines:
            fields = {key: value for key, value in line.items() if value is not None}
            # The journal first: it may be on a disk that has room.
            self._log.info("file_left", **{key: value for key, value in fields.items() if key not in {"at", "uid"}})
            self._unwritten += json.dumps(fields).encode() + b"\n"
        if not self._unwritten:
            return
        with self._path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                write_all(file, self._unwritten)
            except OSError:
                file.truncate(before)
                raise
        self._unwritten = b""


@dataclass(frozen=True)
class _Unacknowledged:
    size: int
    num_examples: int | None


class TaskAudit:
    """The files of one task that are being sent, until they are in the log."""

    def __init__(self, log: AuditLog, assignment: Assignment, server: str) -> None:
        self._log = log
        self._assignment = assignment
        self._server = server
        self._unacknowledged: dict[FileId, _Unacknowledged] = {}

    def record_sent(self, file: FileId, size: int, num_examples: int | None = None) -> None:
        """A file of `size` bytes is sent, or may have been before a restart; `num_examples` are behind an update."""
        self._unacknowledged[file] = _Unacknowledged(size, num_examples)

    def record_delivered(self, outcome: Outcome) -> None:
        """The server has the file."""
        sent = self._unacknowledged.pop(outcome.file_id, None)
        examples = None if sent is None else sent.num_examples
        self._log.add([self._line(outcome.file_id, outcome.bytes_sent, examples)])

    def record_dropped(self, unwanted: Callable[[FileId], bool]) -> None:
        """Files were cleared: those that were not acknowledged may have left all the same."""
        gone = {file: self._unacknowledged.pop(file) for file in list(self._unacknowledged) if unwanted(file)}
        self._log.add(self._line(file, sent.size, sent.num_examples, acknowledged=False) for file, sent in gone.items())

    def _line(
        self, file: FileId, size: int, num_examples: int | None, *, acknowledged: bool | None = None
    ) -> dict[str, Any]:
        return {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "to": self._server,
            "kind": file.kind.value,
            "task": self._assignment.number,
            "uid": self._assignment.task,
            "dataset": self._assignment.settings.dataset,
            "round": file.round,
            "chunk": file.chunk,
            "client": file.client,
            "part": file.part,
            "phase": file.phase,
            "num_examples": num_examples,
            "bytes": size,
            "acknowledged": acknowledged,
        }
