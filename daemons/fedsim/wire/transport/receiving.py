"""Passes what the other side offers to an Inbox, piece by piece, and answers for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from fedsim.errors import Refused
from fedsim.spool.files import FileHeader
from fedsim.wire.peer import Identity
from fedsim.wire.protocol.connection import ProtocolConnection
from fedsim.wire.protocol.events import BodyReceived, FileOffered
from fedsim.wire.transport.expected import ExpectedFile


class Incoming(Protocol):
    """A file being received. Its methods raise only Refused, after cleaning up."""

    have: int

    def write(self, data: memoryview) -> None:
        """Append bytes."""

    def finish(self) -> None:
        """Verify the complete file, make it durable and rename it into place; may block, called from any thread."""

    def abandon(self, *, keep: bool) -> None:
        """The connection has ended, or the transfer; `keep` what was received for resuming."""


class Inbox(Protocol):
    """Accepts the files that the other side offers."""

    def offer(self, sender: Identity, header: FileHeader) -> Incoming | ExpectedFile | None:
        """None if exactly this file is stored already; raises Refused if it is not accepted.

        An `ExpectedFile` is about to come from another host: the offer is answered when that has ended.
        """


class _NoInbox:
    def offer(self, _sender: Identity, _header: FileHeader) -> Incoming | None:
        raise Refused("not_permitted", "no files are accepted on this connection")


class IncomingFiles:
    """The files that the other side of one connection is sending.

    Args:
        protocol: of the connection.
        inbox: accepts the files; without one everything is refused.
        run: runs a job that may block.
        wake: requests that the connection is handled, from any thread.
    """

    def __init__(
        self,
        protocol: ProtocolConnection,
        inbox: Inbox | None,
        run: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._protocol = protocol
        self._inbox: Inbox = inbox or _NoInbox()
        self._run = run
        self._wake = wake
        self._open: dict[int, Incoming] = {}
        self._results: deque[tuple[int, Refused | None]] = deque()
        self._expected: dict[int, ExpectedFile] = {}
        self._settled: deque[int] = deque()

    def on_offer(self, sender: Identity, offered: FileOffered) -> None:
        """A file is offered."""
        transfer = offered.transfer
        try:
            incoming = self._inbox.offer(sender, offered.header)
            if isinstance(incoming, ExpectedFile):
                self._expect(transfer, incoming)
                return
            if incoming is None:
                self._protocol.answer_stored(transfer)
                return
            if offered.inline is not None and offered.header.size > incoming.have:
                incoming.write(memoryview(offered.inline)[incoming.have :])
        except Refused as refused:
            self._protocol.refuse(transfer, refused)
            return
        self._begin(transfer, incoming)

    def _begin(self, transfer: int, incoming: Incoming) -> None:
        if self._protocol.answer(transfer, incoming.have):
            self._finish(transfer, incoming)
        else:
            self._open[transfer] = incoming

    def _expect(self, transfer: int, expected: ExpectedFile) -> None:
        def settled() -> None:
            self._settled.append(transfer)
            self._wake()

        self._expected[transfer] = expected
        expected.when_settled(settled)

    def _answer_settled(self) -> None:
        """Answer for the files that have come from another host, or will not."""
        while self._settled:
            transfer = self._settled.popleft()
            if (expected := self._expected.pop(transfer, None)) is None:
                continue  # its offer was cancelled
            try:
                incoming = expected.resolve()
            except Refused as refused:
                self._protocol.refuse(transfer, refused)
                continue
            if incoming is None:
                self._protocol.answer_stored(transfer)
            else:
                self._begin(transfer, incoming)

    def on_body(self, received: BodyReceived) -> None:
        """Bytes of a file were received."""
        incoming = self._open[received.transfer]
        try:
            incoming.write(received.data)
        except Refused as refused:
            del self._open[received.transfer]
            self._protocol.refuse(received.transfer, refused)
            return
        if received.complete:
            del self._open[received.transfer]
            self._finish(received.transfer, incoming)

    def on_cancel(self, transfer: int) -> None:
        """The other side does not send a file any further."""
        if (expected := self._expected.pop(transfer, None)) is not None:
            expected.cancel()
        elif (incoming := self._open.pop(transfer, None)) is not None:
            incoming.abandon(keep=False)

    def _finish(self, transfer: int, incoming: Incoming) -> None:
        def job() -> None:
            try:
                incoming.finish()
                result = None
            except Refused as refused:
                result = refused
            self._results.append((transfer, result))
            self._wake()

        self._run(job)

    def answer_finished(self, now: float) -> None:
        """Answer for the files that were verified or refused since the last call."""
        self._answer_settled()
        while self._results:
            transfer, refused = self._results.popleft()
            if refused is None:
                self._protocol.acknowledge(transfer, now)
            else:
                self._protocol.refuse(transfer, refused)

    def abandon(self) -> None:
        """The connection has ended; what was received is kept for resuming."""
        for incoming in self._open.values():
            incoming.abandon(keep=True)
        self._open.clear()
        for expected in self._expected.values():
            expected.cancel()
        self._expected.clear()
