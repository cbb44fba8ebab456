"""What left this house: one line for every file that a server took, so that the institution can be sure.

`left.jsonl` in the spool, oldest first; fedsim only ever adds to it. The journal tells the same. No file is missing
there: one that may have left but whose receipt has not come when it is cleared has a line with `acknowledged: false`.
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
        """Add lines, without the fields that are None. What finds no room on the disk is written with the next ones."""
        for line in lines:
            told = {key: value for key, value in line.items() if value is not None}
            # The journal first: it may lie on a disk that has room.
            self._log.info("left", **{key: value for key, value in told.items() if key not in {"at", "uid"}})
            self._unwritten += json.dumps(told).encode() + b"\n"
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
class _OnItsWay:
    size: int
    num_examples: int | None


class TaskAudit:
    """What of one task is on its way out of this house, until it is in the log."""

    def __init__(self, log: AuditLog, assignment: Assignment, server: str) -> None:
        self._log = log
        self._assignment = assignment
        self._server = server
        self._on_its_way: dict[FileId, _OnItsWay] = {}

    def goes(self, file: FileId, size: int, num_examples: int | None = None) -> None:
        """A file of `size` bytes is sent, or may have been before a restart; `num_examples` are behind an update."""
        self._on_its_way[file] = _OnItsWay(size, num_examples)

    def taken(self, outcome: Outcome) -> None:
        """The server has the file."""
        sent = self._on_its_way.pop(outcome.file_id, None)
        examples = None if sent is None else sent.num_examples
        self._log.add([self._line(outcome.file_id, outcome.bytes_sent, examples)])

    def forget(self, unwanted: Callable[[FileId], bool]) -> None:
        """Files were cleared: those that were still on their way may have left, all of them."""
        gone = {file: self._on_its_way.pop(file) for file in list(self._on_its_way) if unwanted(file)}
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
            "num_examples": num_examples,
            "bytes": size,
            "acknowledged": acknowledged,
        }
