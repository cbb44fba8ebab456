"""The transfer of one file to one peer: what was requested, its progress, and its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from fedsim.spool.files import FileHeader, FileId
from fedsim.wire.body import FileBody
from fedsim.wire.peer import Peer
from fedsim.wire.protocol.outgoing import Outgoing


class Status(StrEnum):
    """How a transfer ended."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    GAVE_UP = "gave_up"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a transfer. `message` says why it was not delivered; `code` is the refusal code of the protocol.

    `bytes_sent` counts what went over the wire for it, `seconds` runs from `send` on. `already_there`: the receiver had
    exactly this file, so no body was sent.
    """

    peer: Peer
    file_id: FileId
    status: Status
    code: str = ""
    message: str = ""
    bytes_sent: int = 0
    seconds: float = 0.0
    already_there: bool = False

    @property
    def delivered(self) -> bool:
        """Whether the file is in place at the peer."""
        return self.status is Status.DELIVERED


class Cancel(Protocol):
    """Ends a transfer."""

    def __call__(self, transfer: Transfer, *, unless_offered: bool = False) -> None:
        """End it; with `unless_offered` only if it has not been offered."""


class Transfer:
    """A file being sent to a peer; `cancel` and `give_way` may be called from any thread."""

    def __init__(
        self,
        cancel: Cancel,
        file_id: FileId,
        what: Path | bytes | FileBody,
        meta: dict[str, Any],
        digest: str | None,
        give_up_after: float | None,
        on_done: Callable[[Outcome], None],
        entry: Path | None = None,
    ) -> None:
        self.file_id = file_id
        self.what = what
        self.meta = meta
        self.digest = digest
        self.on_done = on_done
        self.started = time.monotonic()
        self.give_up_at = None if give_up_after is None else self.started + give_up_after
        self.header: FileHeader | None = None
        self.body: FileBody | None = None
        self.outgoing: Outgoing | None = None
        self.bytes_sent = 0
        self.refusals = 0
        self.wrong_digests = 0
        self.trouble = ""
        self.refusal_code = ""
        self._cancel = cancel
        self._entry = entry

    @property
    def queued(self) -> bool:
        """Whether it is still to be sent: no other process has sent it since it was queued."""
        return self._entry is None or self._entry.exists()

    def cancel(self) -> None:
        """Stop sending; the outcome then says `cancelled`, unless it ended before."""
        self._cancel(self)

    def give_way(self) -> None:
        """Stop sending if the file has not been offered; otherwise the transfer continues to its end."""
        self._cancel(self, unless_offered=True)
