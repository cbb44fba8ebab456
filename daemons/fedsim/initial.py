"""What a task's first model is: made from a seed, a checkpoint of an earlier task, or a file on the server.

The setting `initial` names the source; what it was when the task was submitted is recorded with the task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_TASK = re.compile(r"task ([1-9][0-9]{0,17})(?:@(0|[1-9][0-9]{0,6}))?")
_FILE = re.compile(r"file ([A-Za-z0-9][A-Za-z0-9_.-]{0,127})")
FORMS = "must be empty, `task NUMBER`, `task NUMBER@ROUND` such as task 42@20, or `file NAME`"


@dataclass(frozen=True)
class InitialSource:
    """The source that a setting names: `task`, at `round` (None: the last one that is saved), or else `file`."""

    task: int | None = None
    round: int | None = None
    file: str | None = None

    def __str__(self) -> str:
        """The setting."""
        if self.file is not None:
            return f"file {self.file}"
        return f"task {self.task}" if self.round is None else f"task {self.task}@{self.round}"


def parse_source(text: str) -> InitialSource | None:
    """The source that the setting `initial` names; None if it is empty.

    Raises:
        ValueError: it has another form. A file is a plain name: no path leads out of its folder.
    """
    if not text:
        return None
    if (found := _TASK.fullmatch(text)) is not None:
        return InitialSource(task=int(found[1]), round=None if found[2] is None else int(found[2]))
    if (found := _FILE.fullmatch(text)) is not None:
        return InitialSource(file=found[1])
    raise ValueError(FORMS)


class InitialModel(BaseModel):
    """Where a task's first model comes from, as recorded at its submission; `digest` is the file's (blake3)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: Literal["task", "file"]
    task: int | None = None
    round: int | None = None
    file: str | None = None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def __str__(self) -> str:
        """The source, for messages."""
        return f"the file {self.file}" if self.source == "file" else f"round {self.round} of task {self.task}"


class InitialFile(BaseModel):
    """The file with a task's first model, for the worker that reads it; `source` is for messages."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: Path
    digest: str
    source: str
