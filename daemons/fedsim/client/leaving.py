"""What left this house: one line for every file that a server took, so that the institution can be sure.

`left.jsonl` in the spool, oldest first; fedsim only ever adds to it. The journal tells the same. No file is missing
there: one whose receipt has not come when it is cleared has a line as well, with `acknowledged: false`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.log import get_logger
from fedsim.messages import Assignment
from fedsim.spool.files import FileId
from fedsim.wire.sender import Outcome


class LeavingLog:
    """Adds lines to the log at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = get_logger()

    def add(self, line: dict[str, Any]) -> None:
        """Add a line; fields that are None are left out."""
        line = {key: value for key, value in line.items() if value is not None}
        # The journal first: it may lie on a disk that has room.
        self._log.info("left", **{key: value for key, value in line.items() if key not in {"at", "uid"}})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class _OnItsWay:
    size: int
    num_examples: int | None


class Leaving:
    """What of one task is on its way out of this house, until it is in the log."""

    def __init__(self, log: LeavingLog, assignment: Assignment, server: str) -> None:
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
        self._note(outcome.file_id, outcome.bytes_sent, None if sent is None else sent.num_examples)

    def forget(self, unwanted: Callable[[FileId], bool]) -> None:
        """Files are cleared: those that are still on their way may have left, all of them."""
        for file in [file for file in self._on_its_way if unwanted(file)]:
            sent = self._on_its_way.pop(file)
            self._note(file, sent.size, sent.num_examples, acknowledged=False)

    def _note(self, file: FileId, size: int, num_examples: int | None, *, acknowledged: bool | None = None) -> None:
        self._log.add(
            {
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
        )
