"""Global models that the server has announced and that another node sends: who may send which bytes, and until when.

The server's own offer is the announcement: `forwarding` in its metadata names the node that will send the bytes, and
the node to which they are passed on. Its answer waits until the file is stored, or does not come: then the server sends
what is missing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from fedsim.errors import BadInput, Refused
from fedsim.forwarding import Forwarding
from fedsim.inbox.incoming_file import IncomingFile
from fedsim.messages import read_message
from fedsim.spool.files import FileHeader, Role
from fedsim.wire import Identity
from fedsim.wire.protocol.frames import INLINE_BYTES
from fedsim.wire.transport.expected import ExpectedFile
from fedsim.wire.transport.receiving import Incoming

FORWARDING: Final = "forwarding"
"""The key of the metadata of a `globalparam`."""
_BUSY_SECONDS: Final = 0.05
_MOST_KNOWN: Final = 200


class Relay(Protocol):
    """Passes one file on to another node while it arrives."""

    def grown(self, received: int) -> None:
        """The first `received` bytes of it are there."""

    def cancel(self) -> None:
        """What arrived was not what was announced."""


class Relays(Protocol):
    """Passes files on."""

    def begin(self, header: FileHeader, path: Path, received: int, forwarding: Forwarding) -> Relay | None:
        """Begin, or continue, to pass on the file at `path`, of which the first `received` bytes are there."""


def split_forwarding(header: FileHeader) -> tuple[FileHeader, Forwarding | None]:
    """The header without the way of its bytes, which is not stored, and that way; Refused if it is malformed."""
    if FORWARDING not in header.meta:
        return header, None
    way = header.meta[FORWARDING]
    try:
        forwarding = read_message(Forwarding, way if isinstance(way, dict) else str(way), "its forwarding")
    except BadInput as error:
        raise Refused("bad_metadata", str(error)) from error
    meta = {key: value for key, value in header.meta.items() if key != FORWARDING}
    return header.model_copy(update={"meta": meta}), None if header.size <= INLINE_BYTES else forwarding


@dataclass(eq=False)
class Announced:
    """A file that the server has offered. Once it is `over`, only the server may send it.

    `incoming` is the file while a node sends it; until `due` (time.monotonic) the server's offer waits for that.
    """

    server: Identity
    header: FileHeader
    forwarding: Forwarding
    receive: Callable[[str | None], Incoming | None]
    offer: ExpectedFile
    due: float
    incoming: IncomingFile | None = None
    over: bool = False


class ForwardedModels:
    """What is announced, by the path at which it will be stored. An actor of the reactor; all else from any thread."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._announced: dict[Path, Announced] = {}

    def awaits(self, peer: Identity) -> bool:
        """Whether this node is about to send a file that the server announced: it may connect."""
        with self._lock:
            waiting = [one for one in self._announced.values() if not one.over]
        return peer.role is Role.CLIENT and any(one.forwarding.predecessor == peer.name for one in waiting)

    def announce(
        self,
        path: Path,
        server: Identity,
        header: FileHeader,
        forwarding: Forwarding,
        receive: Callable[[str | None], Incoming | None],
    ) -> ExpectedFile | None:
        """The server offers a file that its predecessor will send; None if the server is to send it itself after all.

        Args:
            path: where it will be stored.
            server: who offers it.
            header: of the file.
            forwarding: its way.
            receive: begins to receive it, from the server (None) or from the node of this name.
        """
        with self._lock:
            known = self._announced.pop(path, None)
            if known is not None and known.header == header and known.over:
                self._announced[path] = known
                return None
            offer = ExpectedFile(lambda: receive(None), lambda: self._forget(path, offer))
            due = time.monotonic() + forwarding.seconds
            one = Announced(server, header, forwarding, receive, offer, due)
            if known is not None and known.header == header:
                one.incoming = known.incoming  # it was offered on a connection that has ended
            self._announced[path] = one
            for oldest in list(self._announced)[:-_MOST_KNOWN]:
                self._announced.pop(oldest).offer.settle()
        self.wake()
        return offer

    def take(self, path: Path, sender: Identity, header: FileHeader) -> Incoming | None:
        """A node offers a file; raises Refused unless the server announced exactly that, from this node."""
        with self._lock:
            one = self._announced.get(path)
        kind = header.id.kind
        if one is None or one.forwarding.predecessor != sender.name:
            raise Refused("not_announced", f"the server announced no {kind} from {sender.name} here", retry=one is None)
        if (header.size, header.digest) != (one.header.size, one.header.digest):
            raise Refused("not_announced", f"this is not the {kind} that the server announced")
        if one.over:
            raise Refused("not_announced", f"the server sends this {kind} itself by now")
        return one.receive(sender.name)

    def began(self, path: Path, incoming: IncomingFile) -> None:
        """A node has begun to send a file."""
        with self._lock:
            if (one := self._announced.get(path)) is not None:
                one.incoming = incoming

    def ended(self, path: Path, *, stored: bool) -> None:
        """A file was stored, or what was being received ended before: then the server sends the rest."""
        with self._lock:
            one = self._announced.get(path)
            if one is None:
                return
            one.over, one.incoming = True, None
            if stored:
                del self._announced[path]
        one.offer.settle()

    def _forget(self, path: Path, offer: ExpectedFile) -> None:
        """The server's offer has ended; what is being received from a node is still received."""
        with self._lock:
            one = self._announced.get(path)
            if one is not None and one.offer is offer and one.incoming is None:
                del self._announced[path]

    # -- for the reactor

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return -1, 0

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        with self._lock:
            return min((one.due for one in self._announced.values() if not one.over), default=None)

    def handle(self, _: int) -> bool:
        """End the wait for nodes that are too slow."""
        now = time.monotonic()
        with self._lock:
            late = [one for one in self._announced.values() if not one.over and now >= one.due]
        for one in late:
            if one.incoming is None:
                one.over = True
                one.offer.settle()
            elif not one.incoming.supersede():  # its end settles the offer; it is being written to at this moment
                one.due = now + _BUSY_SECONDS
        return False


class RelayedFile:
    """An `Incoming` that is passed on while it arrives, or comes from another node, or both."""

    def __init__(self, incoming: IncomingFile, relay: Relay | None, *, forwarded: bool) -> None:
        self._incoming = incoming
        self._relay = relay
        self._forwarded = forwarded
        self.have = incoming.have

    def write(self, data: memoryview) -> None:
        """Append bytes, and pass them on."""
        self._incoming.write(data)
        if self._relay is not None and self._incoming.claim is not None:
            self._relay.grown(self._incoming.claim.received)

    def finish(self) -> None:
        """See `Incoming`; what cannot be stored is not passed on any further."""
        try:
            self._incoming.finish()
        except Refused as refused:
            if self._relay is not None and refused.code != "superseded":
                self._relay.cancel()
            raise

    def abandon(self, *, keep: bool) -> None:
        """See `Incoming`; what a node has sent is kept, because the server sends the rest."""
        self._incoming.abandon(keep=keep or self._forwarded)
