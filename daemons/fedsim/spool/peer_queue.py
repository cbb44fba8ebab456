"""The files to be sent to each peer, durably queued: a process that holds a connection to the peer may send them.

outgoing/<peer>/<when>.<key>.json    one file: its id, metadata and digest, and its path or (JSON messages) its content

If two processes send the same file, the second is answered that it is stored already.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from fedsim.errors import BadInput
from fedsim.spool.durable import remove_file, write_bytes
from fedsim.spool.files import Digest, FileId

OUTGOING = "outgoing"


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
        """What a sender takes: the path, or the bytes."""
        return self.path if self.path is not None else (self.content or "").encode()


@dataclass(frozen=True)
class QueueEntry:
    """A file in the queue of a peer."""

    entry: Path
    file: QueuedFile


class PeerQueue:
    """The queue of one peer; from any process."""

    def __init__(self, spool_root: Path, peer: str) -> None:
        self.folder = spool_root / OUTGOING / peer

    def put(self, file: QueuedFile) -> QueueEntry:
        """Durably queue a file, in place of an older entry with the same id."""
        key = blake3(file.id.model_dump_json().encode()).hexdigest()[:32]
        older = list(self.folder.glob(f"*.{key}.json"))
        entry = self.folder / f"{time.time_ns():020d}.{key}.json"
        write_bytes(entry, json.dumps(file.model_dump(mode="json"), allow_nan=False).encode())
        for path in older:
            remove_file(path)
        return QueueEntry(entry, file)

    def entries(self) -> list[QueueEntry]:
        """The queued files, oldest first; `BadInput` names an entry that cannot be read."""
        found = []
        for path in sorted(self.folder.glob("[0-9]*.json")):
            try:
                found.append(QueueEntry(path, QueuedFile.model_validate_json(path.read_bytes())))
            except FileNotFoundError:
                continue  # another process has sent it
            except ValidationError as error:
                raise BadInput(f"{path} is not a queued file: {error}") from error
        return found

    def remove(self, item: QueueEntry) -> None:
        """Remove a file that was delivered, refused or is obsolete; a newer entry with its id stays."""
        remove_file(item.entry)
