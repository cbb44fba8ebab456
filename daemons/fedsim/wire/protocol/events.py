"""What a connection reports to its owner. Each event must be handled before the next one is taken."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.errors import Refused
from fedsim.spool.files import FileHeader
from fedsim.wire.peer import Identity
from fedsim.wire.protocol.outgoing import Outgoing


@dataclass(frozen=True)
class HelloReceived:
    """The other side has identified itself; `ProtocolConnection.accept` admits it, `close` rejects it."""

    identity: Identity


@dataclass(frozen=True)
class FileOffered:
    """A file is offered, to be answered. `inline` is its content if that is part of the offer."""

    transfer: int
    header: FileHeader
    inline: bytes | None


@dataclass(frozen=True)
class BodyReceived:
    """The next bytes of a file, valid until the next event; with the last ones it is `complete`."""

    transfer: int
    data: memoryview
    complete: bool


@dataclass(frozen=True)
class OfferCancelled:
    """The other side does not send this file any further."""

    transfer: int


@dataclass(frozen=True)
class OfferEnded:
    """A file that this side offered is stored at the other side, unless it was `refused`."""

    outgoing: Outgoing
    refused: Refused | None
    already_there: bool


ConnectionEvent = HelloReceived | FileOffered | BodyReceived | OfferCancelled | OfferEnded
