"""One file on its way to one peer: what was asked for, how far it is, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from fedsim.spool.files import FileHeader, FileId
from fedsim.wire.body import Source
from fedsim.wire.outgoing import Outgoing
from fedsim.wire.peer import Peer


class Status(StrEnum):
    """How a transfer ended."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    GAVE_UP = "gave_up"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Outcome:
    """How a transfer ended. `message` says why it was not delivered; `code` is the wire's refusal code.

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
        """Whether the file is in place over there."""
        return self.status is Status.DELIVERED


class Cancel(Protocol):
    """How a channel ends a transfer."""

    def __call__(self, transfer: Transfer, *, unless_offered: bool = False) -> None:
        """End it, or only if the peer has not heard of it."""


class Transfer:
    """A file on its way to a peer; `cancel` and `give_way` may be called from any thread."""

    def __init__(
        self,
        cancel: Cancel,
        file_id: FileId,
        what: Path | bytes,
        meta: dict[str, Any],
        digest: str | None,
        give_up_after: float | None,
        on_done: Callable[[Outcome], None],
    ) -> None:
        self.file_id = file_id
        self.what = what
        self.meta = meta
        self.digest = digest
        self.on_done = on_done
        self.started = time.monotonic()
        self.give_up_at = None if give_up_after is None else self.started + give_up_after
        self.retry_at = self.started
        self.header: FileHeader | None = None
        self.source: Source | None = None
        self.outgoing: Outgoing | None = None
        self.bytes_sent = 0
        self.refusals = 0
        self.wrong_digests = 0
        self.trouble = ""
        self.refusal_code = ""
        self._cancel = cancel

    def cancel(self) -> None:
        """Stop sending; the outcome then says `cancelled`, unless it ended before."""
        self._cancel(self)

    def give_way(self) -> None:
        """Stop sending if the peer has not heard of it; else it goes on to its end."""
        self._cancel(self, unless_offered=True)
