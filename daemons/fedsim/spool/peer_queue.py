"""The files to be sent to each peer that listens on no port, by the receiver, to which such peers connect.

outgoing/<peer>/<when>.<key>.json    a file: its id, metadata and digest, and its path or (JSON messages) its content
sent/<when>.<key>.json               its outcome

A daemon queues files for such peers and sends all others itself. The lock on a peer's folder decides which connection
sends, if a peer opened several or a receiver replaces another; the kernel releases it when the process that holds it
ends. A daemon that starts empties its queues and then queues again what is still to be sent, so nothing
here is synced to the disk.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from fedsim.errors import BadInput
from fedsim.problems import problems_text
from fedsim.spool.durable import FOLDER_MODE, TEMPORARY_SUFFIX, remove_file
from fedsim.spool.files import Digest, FileId

OUTGOING: Final = "outgoing"
SENT: Final = "sent"
_ENTRIES: Final = "[0-9]*.json"


class QueuedFile(BaseModel):
    """A file to be sent: `path` names it, or `content` is the JSON message itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: FileId
    path: Path | None = None
    content: str | None = None
    meta: dict[str, Any] = {}
    digest: Digest | None = None

    @property
    def source(self) -> Path | bytes:
        """What a sender sends: the path, or the bytes."""
        return self.path if self.path is not None else (self.content or "").encode()


class PeerQueue:
    """The queue of one peer."""

    def __init__(self, spool_root: Path, peer: str) -> None:
        self.peer = peer
        self.folder = spool_root / OUTGOING / peer

    def create(self) -> None:
        """Create the folder if it is missing."""
        self.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def put(self, file: QueuedFile) -> Path:
        """Add a file; returns its entry, whose removal takes it off the queue."""
        key = blake3(f"{self.peer} {file.id.model_dump_json()}".encode()).hexdigest()[:32]
        entry = self.folder / f"{time.time_ns():020d}.{key}.json"
        try:
            return _write(entry, file)
        except FileNotFoundError:  # the first one for this peer
            self.create()
            return _write(entry, file)

    def entries(self) -> list[Path]:
        """The entries, oldest first."""
        return sorted(self.folder.glob(_ENTRIES))


def read_entry(entry: Path) -> QueuedFile | None:
    """Read an entry; None if it is no longer queued, `BadInput` if it cannot be read."""
    try:
        return QueuedFile.model_validate_json(entry.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BadInput(f"{entry} is not a queued file: {problems_text(error)}") from error


def record_sent(spool_root: Path, entry: Path, outcome: BaseModel) -> None:
    """Hand the outcome of a queued file to the daemon that queued it.

    The entry is removed last: if this process ends in between, the file is offered again and is there already.
    """
    _write(spool_root / SENT / entry.name, outcome)
    remove_file(entry)


def sent_entries(spool_root: Path) -> list[Path]:
    """The outcomes that the daemon has not read."""
    return sorted((spool_root / SENT).glob(_ENTRIES))


def empty_queues(spool_root: Path) -> None:
    """Remove all entries and outcomes."""
    for path in (*(spool_root / OUTGOING).glob(f"*/{_ENTRIES}"), *sent_entries(spool_root)):
        remove_file(path)


def _write(path: Path, content: BaseModel) -> Path:
    """Write a file that becomes visible as a whole; not synced."""
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        temporary.write_text(content.model_dump_json(exclude_none=True), encoding="utf-8")
        temporary.rename(path)
    except OSError:
        remove_file(temporary)
        raise
    return path


class QueueLock:
    """The right to send what is queued for one peer. Held by one connection of one process at a time."""

    def __init__(self, queue: PeerQueue) -> None:
        self._queue = queue
        self._mutex = threading.Lock()
        self._attempt: object | None = None
        self._descriptor = -1

    def acquire(self, on_acquired: Callable[[], None]) -> None:
        """Call `on_acquired` with the lock held: at once if it is free, otherwise later and from another thread."""
        self._queue.create()
        descriptor = os.open(self._queue.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        attempt = self._attempt = object()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Waiting for a lock of the kernel needs a thread, but neither polling nor a notification that may be lost.
            threading.Thread(target=self._wait, args=(descriptor, attempt, on_acquired), daemon=True).start()
            return
        self._descriptor = descriptor
        on_acquired()

    def _wait(self, descriptor: int, attempt: object, on_acquired: Callable[[], None]) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with self._mutex:
            if self._attempt is not attempt:
                os.close(descriptor)
                return
            self._descriptor = descriptor
        on_acquired()

    def release(self) -> None:
        """Release the lock, or stop waiting for it."""
        with self._mutex:
            self._attempt = None
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
