"""The event log of a task on disk: in the task's folder while it runs, in the spool's `events` folder afterwards.

It serves bug reports (see `fedsim.state_machines.event_log.replay`): it is written without fsync, bounded in size, and
an error of the disk loses lines of it instead of failing the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fedsim.log import get_logger
from fedsim.state_machines.event_log import LoggedEvent, action_names, encode_event

Answer = TypeVar("Answer")

SEGMENT_BYTES = 4 * 1024 * 1024
KEPT_LOGS = 20


class EventFile:
    """Writes `events.jsonl` in a task's folder; its older part is `events.old.jsonl`.

    Args:
        folder: of the task.
        segment_bytes: a part that is longer takes no more events, except for those that start a machine.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._path = folder / "events.jsonl"
        self._old = folder / "events.old.jsonl"
        self._limit = segment_bytes

    @property
    def rotation_due(self) -> bool:
        """Whether a snapshot of the machine should start a new part."""
        return self._size() > self._limit // 2

    def record(
        self, event: object, at: float, handle: Callable[[], list[Answer]], phase: Callable[[], str]
    ) -> list[Answer]:
        """Handle an event and record it, with what the machine answered or which exception it raised."""
        try:
            actions = handle()
        except Exception as error:
            self._append(LoggedEvent(at, event, problem=f"{type(error).__name__}: {error}"))
            raise
        self._append(LoggedEvent(at, event, phase(), action_names(actions)))
        return actions

    def rotate(self, start: object, at: float) -> None:
        """Start a new part with an event that makes the machine as it is now; only the part before it is kept."""
        with suppress(OSError):
            self._path.replace(self._old)
        self._append(LoggedEvent(at, start))

    def keep(self, folder: Path, name: str) -> None:
        """Store the log of a task that ends in `folder`, where the newest logs stay."""
        try:
            folder.mkdir(mode=0o750, exist_ok=True)
            with (folder / f"{name}.jsonl").open("wb") as kept:
                for part in (self._old, self._path):
                    if part.exists():
                        kept.write(part.read_bytes())
            logs: Sequence[Path] = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
            for path in logs[:-KEPT_LOGS]:
                path.unlink(missing_ok=True)
        except OSError as error:
            get_logger().warning("event_log_lost", problem=str(error))

    def _append(self, logged: LoggedEvent) -> None:
        if self._size() > self._limit:
            return
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(encode_event(logged))

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0
