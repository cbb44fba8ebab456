"""The receiving half of a link: what the other side offers goes piece by piece into an Inbox, and is answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from fedsim.errors import Refused
from fedsim.spool.files import FileHeader
from fedsim.wire.frames import INLINE_BYTES, Ack, Answer, FrameType, ProtocolError, Refusal, encode, problems_of
from fedsim.wire.outgoing import MAX_OPEN_TRANSFERS
from fedsim.wire.peer import Identity
from fedsim.wire.reader import Frame, Piece


class Incoming(Protocol):
    """A file on its way in. Its methods raise nothing but Refused, and have then cleaned up after themselves."""

    have: int

    def write(self, data: memoryview) -> None:
        """Append bytes."""

    def finish(self) -> None:
        """Verify the whole file, make it durable and put it into place; may block, called from any thread."""

    def abandon(self, *, keep: bool) -> None:
        """Nothing more comes on this connection; `keep` what is there for resuming."""


class Inbox(Protocol):
    """Takes what the other side offers."""

    def offer(self, sender: Identity, header: FileHeader) -> Incoming | None:
        """None if exactly this file is stored already; raises Refused if it is not wanted."""


@dataclass
class _Receiving:
    incoming: Incoming
    size: int
    next: int


class IncomingSide:
    """The transfers that the other side of one link has offered.

    Args:
        inbox: takes the files; without one everything is refused.
        put: lets a frame leave.
        run: runs a job that may block.
        wake: asks the link to be handled, from any thread.
    """

    def __init__(
        self,
        inbox: Inbox | None,
        put: Callable[[bytes], None],
        run: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
    ) -> None:
        self._inbox = inbox
        self._put = put
        self._run = run
        self._wake = wake
        self._receiving: dict[int, _Receiving] = {}
        self._results: deque[tuple[int, Ack]] = deque()
        self._last_offered = 0
        self.finishing = 0
        self.body_bytes = 0

    @property
    def expects(self) -> bool:
        """Whether bytes of a body are due."""
        return bool(self._receiving)

    def on_offer(self, sender: Identity, frame: Frame) -> None:
        """A file is offered; `ProtocolError` if the frame itself makes no sense."""
        transfer = frame.prefix.transfer
        if transfer <= self._last_offered:
            raise ProtocolError("bad_frame", f"the transfer number {transfer} was used before")
        self._last_offered = transfer
        try:
            self._take(sender, transfer, frame)
        except Refused as refused:
            self._put(encode(FrameType.ANSWER, Answer(refused=Refusal.of(refused)), transfer=transfer))

    def _take(self, sender: Identity, transfer: int, frame: Frame) -> None:
        try:
            header = FileHeader.model_validate_json(frame.header)
        except ValidationError as error:
            raise Refused("bad_header", problems_of(error)) from error
        inline = header.size <= INLINE_BYTES
        if len(frame.body) != (header.size if inline else 0):
            raise ProtocolError("bad_frame", f"an OFFER of {header.size} bytes with a body of {len(frame.body)}")
        if self._inbox is None:
            raise Refused("not_permitted", "no files are taken on this connection")
        if len(self._receiving) + self.finishing >= MAX_OPEN_TRANSFERS:
            raise Refused("busy", f"{MAX_OPEN_TRANSFERS} transfers are open on this connection already", retry=True)
        incoming = self._inbox.offer(sender, header)
        if incoming is None:
            self._put(encode(FrameType.ANSWER, Answer(stored=True), transfer=transfer))
        elif inline:
            if header.size > incoming.have:
                incoming.write(memoryview(frame.body)[incoming.have :])
            self.body_bytes += header.size
            self._finish(transfer, incoming)
        else:
            self._put(encode(FrameType.ANSWER, Answer(have=incoming.have), transfer=transfer))
            if incoming.have == header.size:
                self._finish(transfer, incoming)
            else:
                self._receiving[transfer] = _Receiving(incoming, header.size, incoming.have)

    def on_piece(self, piece: Piece) -> None:
        """Bytes of a body have come; `ProtocolError` if they are not those that were due."""
        if piece.transfer > self._last_offered:
            raise ProtocolError("bad_frame", f"DATA of the transfer {piece.transfer}, which was not offered")
        receiving = self._receiving.get(piece.transfer)
        if receiving is None:
            return  # it was refused while these bytes were on their way
        end = piece.offset + len(piece.data)
        if piece.offset != receiving.next or end > receiving.size:
            raise ProtocolError("bad_offset", f"bytes {piece.offset} to {end}; byte {receiving.next} was due")
        try:
            receiving.incoming.write(piece.data)
        except Refused as refused:
            del self._receiving[piece.transfer]
            self._put(encode(FrameType.ACK, Ack(refused=Refusal.of(refused)), transfer=piece.transfer))
            return
        self.body_bytes += len(piece.data)
        receiving.next = end
        if end == receiving.size:
            del self._receiving[piece.transfer]
            self._finish(piece.transfer, receiving.incoming)

    def on_cancel(self, transfer: int) -> None:
        """The other side does not send it any further."""
        receiving = self._receiving.pop(transfer, None)
        if receiving is not None:
            receiving.incoming.abandon(keep=False)

    def _finish(self, transfer: int, incoming: Incoming) -> None:
        self.finishing += 1

        def job() -> None:
            try:
                incoming.finish()
                ack = Ack()
            except Refused as refused:
                ack = Ack(refused=Refusal.of(refused))
            self._results.append((transfer, ack))
            self._wake()

        self._run(job)

    def answer_finished(self) -> bool:
        """Answer for the files that were verified or refused since the last call; whether there were any."""
        there = bool(self._results)
        while self._results:
            transfer, ack = self._results.popleft()
            self.finishing -= 1
            self._put(encode(FrameType.ACK, ack, transfer=transfer))
        return there

    def abandon(self) -> None:
        """The connection is gone; what has come stays for resuming."""
        for receiving in self._receiving.values():
            receiving.incoming.abandon(keep=True)
        self._receiving.clear()
