"""What left this house: one line for every file that a server took, so that the institution can be sure.

`left.jsonl` in the spool, oldest first; fedsim only ever adds to it. The journal tells the same.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fedsim.log import get_logger
from fedsim.messages import Assignment
from fedsim.wire.sender import Outcome


class LeavingLog:
    """Adds lines to the log at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = get_logger()

    def note(self, assignment: Assignment, outcome: Outcome, num_examples: int | None) -> None:
        """A file of a task has left; `num_examples` are behind an update, None for a test set."""
        file = outcome.file_id
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "to": outcome.peer.name,
            "kind": file.kind.value,
            "task": assignment.number,
            "uid": assignment.task,
            "dataset": assignment.settings.dataset,
            "round": file.round,
            "chunk": file.chunk,
            "client": file.client,
            "part": file.part,
            "num_examples": num_examples,
            "bytes": outcome.bytes_sent,
        }
        line = {key: value for key, value in line.items() if value is not None}
        # The journal first: it may lie on a disk that has room.
        self._log.info("left", **{key: value for key, value in line.items() if key not in {"at", "uid"}})
        with self._path.open("a", encoding="utf-8") as file_object:
            file_object.write(json.dumps(line) + "\n")
