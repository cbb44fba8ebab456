"""The state machine of one connection, the same on both ends. It has no clock, no socket and no file.

Its owner passes it the bytes that it received, the time, and its decisions on events; it asks for the bytes to send and
for the moment at which time alone changes something. Exceptions (`ProtocolError`, `Refused`) mean that the connection
must be closed with their code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from fedsim import __version__
from fedsim.errors import Refused
from fedsim.spool.files import FileHeader
from fedsim.wire.peer import Identity
from fedsim.wire.protocol.events import (
    BodyReceived,
    ConnectionEvent,
    FileOffered,
    HelloReceived,
    OfferCancelled,
    OfferEnded,
)
from fedsim.wire.protocol.frames import (
    INLINE_BYTES,
    VERSION,
    AckHeader,
    AnswerHeader,
    FrameType,
    HelloHeader,
    ProtocolError,
    Refusal,
    encode,
    parse_header,
    problems_of,
)
from fedsim.wire.protocol.limits import ConnectionLimits, Timekeeper
from fedsim.wire.protocol.outgoing import MAX_OPEN_TRANSFERS, BodyRange, FrameBytes, Outgoing, OutgoingSide
from fedsim.wire.protocol.parser import Frame, FrameParser, Piece

MAX_BACKLOG: Final = 4 * MAX_OPEN_TRANSFERS


@dataclass
class _Receiving:
    size: int
    next: int


class ProtocolConnection:
    """One connection as either end sees it.

    Args:
        me: the identity of this side.
        limits: enforced on the connection.
        initiator: whether this side opened the connection; it speaks first.
        accepts_files: whether the other side may offer files.
        now: the time, in seconds of any steady clock, as everywhere here.

    Attributes:
        peer: the other side, once it is accepted.
        closed: why the connection has ended.
    """

    def __init__(
        self, me: Identity, limits: ConnectionLimits, *, initiator: bool, accepts_files: bool = True, now: float
    ) -> None:
        self.peer: Identity | None = None
        self.closed: Refusal | None = None
        self._me = me
        self._limits = limits
        self._initiator = initiator
        self._accepts_files = accepts_files
        self._parser = FrameParser()
        self._out = OutgoingSide()
        self._time = Timekeeper(limits, now)
        self._hello: HelloHeader | None = None
        self._offered: dict[int, FileHeader] = {}
        self._receiving: dict[int, _Receiving] = {}
        self._finishing: set[int] = set()
        self._last_offered = 0
        self._body_bytes = 0

    @property
    def peer_accepts_files(self) -> bool:
        """Whether the other side, once it is accepted, may be offered files."""
        return self.peer is not None and self._hello is not None and self._hello.accepts_files

    @property
    def bytes_received(self) -> int:
        """Bytes received so far."""
        return self._parser.bytes_read

    @property
    def busy(self) -> bool:
        """Whether bytes are ready to be sent."""
        return self._out.busy

    @property
    def sending(self) -> Outgoing | None:
        """The transfer of which a frame has begun and not ended; its body must stay readable."""
        return self._out.sending

    @property
    def overloaded(self) -> bool:
        """Whether the other side has left too many answers unread for more to be read from it."""
        return self._out.backlog >= MAX_BACKLOG

    # -- the handshake

    def start(self) -> None:
        """The connection is ready: the side that opened it sends its HELLO."""
        if self._initiator:
            self._send_hello()

    def accept(self) -> None:
        """Admit the other side, as an answer to `HelloReceived`."""
        hello = self._hello
        if hello is None:
            raise ProtocolError("bad_frame", "no HELLO was received")
        self.peer = Identity(hello.name, hello.role)
        if not self._initiator:
            self._send_hello()
        self._parser.max_header_bytes = self._limits.max_header_bytes
        self._out.max_header_bytes = hello.max_header_bytes
        self._out.established = True

    def close(self, reason: Refusal) -> None:
        """End the connection; a BYE with the reason is ready to be sent if no frame has begun."""
        if self.closed is None:
            self.closed = reason
            if not self._out.busy:
                self._out.put(encode(FrameType.BYE, reason))

    # -- offers of this side

    def offer(self, outgoing: Outgoing) -> None:
        """Queue a file for sending; its end is reported as `OfferEnded`."""
        self._out.offer(outgoing)

    def cancel(self, outgoing: Outgoing) -> None:
        """Stop sending a file; its end is not reported."""
        self._out.cancel(outgoing)

    def ended_offers(self) -> Iterator[OfferEnded]:
        """The offers that ended since the last call."""
        while self._out.ended:
            end = self._out.ended.popleft()
            refusal = end.refusal
            refused = None if refusal is None else Refused(refusal.code, refusal.message, retry=refusal.retry)
            yield OfferEnded(end.outgoing, refused, end.already_there)

    # -- offers of the other side

    def refuse(self, transfer: int, refused: Refused) -> None:
        """Refuse a file, at its offer or later."""
        refusal = Refusal.of(refused)
        if self._offered.pop(transfer, None) is not None:
            self._out.put(encode(FrameType.ANSWER, AnswerHeader(refused=refusal), transfer=transfer))
        else:
            self._receiving.pop(transfer, None)
            self._finishing.discard(transfer)
            self._out.put(encode(FrameType.ACK, AckHeader(refused=refusal), transfer=transfer))

    def answer_stored(self, transfer: int) -> None:
        """Answer that the offered file is stored already."""
        del self._offered[transfer]
        self._out.put(encode(FrameType.ANSWER, AnswerHeader(stored=True), transfer=transfer))

    def answer(self, transfer: int, have: int) -> bool:
        """Accept an offered file of which `have` bytes are there; returns whether it is complete."""
        header = self._offered.pop(transfer)
        if header.size <= INLINE_BYTES:
            self._body_bytes += header.size
            self._finishing.add(transfer)
            return True
        self._out.put(encode(FrameType.ANSWER, AnswerHeader(have=have), transfer=transfer))
        if have == header.size:
            self._finishing.add(transfer)
            return True
        self._receiving[transfer] = _Receiving(header.size, have)
        return False

    def acknowledge(self, transfer: int, now: float) -> None:
        """Report that a complete file is verified, durable and in place."""
        self._finishing.discard(transfer)
        self._out.put(encode(FrameType.ACK, AckHeader(), transfer=transfer))
        self._time.active(now)

    # -- bytes

    def receive(self, data: memoryview, now: float) -> Iterator[ConnectionEvent]:
        """The events in received bytes; each is to be handled before the next one is taken."""
        frames = False
        for item in self._parser.feed(data):
            if isinstance(item, Piece):
                event = self._on_piece(item)
                if event is not None:
                    yield event
            else:
                frames = True
                yield from self._on_frame(item)
            if self.closed is not None:
                return
        self._time.heard(now, midway=self._parser.midway, frames=frames)

    def next_output(self) -> FrameBytes | BodyRange | None:
        """What to send next, the same until `sent` says that it was."""
        return self._out.next_output()

    def sent(self, count: int) -> None:
        """Note that `count` bytes of `next_output` were sent."""
        self._out.sent(count)

    # -- time

    @property
    def deadline(self) -> float | None:
        """When `check_time` must be called even if nothing happens."""
        return None if self.closed is not None else self._time.deadline

    def check_time(self, now: float) -> None:
        """Enforce the time limits; raises Refused. To be called after each `receive` and when the deadline passes."""
        self._time.note(
            now,
            established=self.peer is not None,
            expects=self._out.expects,
            sent=self._out.body_bytes,
            received=self._body_bytes,
            due=bool(self._receiving),
            finishing=bool(self._finishing),
        )
        self._out.body_bytes = self._body_bytes = 0
        if self._time.check(now):
            self._out.put(encode(FrameType.PING))

    # -- frames

    def _send_hello(self) -> None:
        hello = HelloHeader(
            name=self._me.name,
            role=self._me.role,
            versions=(VERSION,),
            software=__version__,
            max_header_bytes=self._limits.max_header_bytes,
            accepts_files=self._accepts_files,
        )
        self._out.put(encode(FrameType.HELLO, hello))

    def _on_frame(self, frame: Frame) -> Iterator[ConnectionEvent]:
        kind, transfer = frame.prefix.type, frame.prefix.transfer
        if kind is FrameType.HELLO:
            yield self._on_hello(frame)
            return
        if kind is FrameType.BYE:
            self.closed = parse_header(Refusal, frame.header, kind)
            return
        if self.peer is None:
            raise ProtocolError("bad_frame", f"a {kind.name} before the handshake")
        match kind:
            case FrameType.OFFER:
                yield from self._on_offer(transfer, frame)
            case FrameType.ANSWER:
                self._out.on_answer(transfer, parse_header(AnswerHeader, frame.header, kind))
            case FrameType.ACK:
                self._out.on_ack(transfer, parse_header(AckHeader, frame.header, kind))
            case FrameType.CANCEL:
                unanswered = self._offered.pop(transfer, None) is not None
                if unanswered or self._receiving.pop(transfer, None) is not None:
                    yield OfferCancelled(transfer)
            case FrameType.PING:
                self._out.put(encode(FrameType.PONG))
        yield from self.ended_offers()

    def _on_hello(self, frame: Frame) -> HelloReceived:
        if self._hello is not None:
            raise ProtocolError("bad_frame", "a second HELLO")
        hello = parse_header(HelloHeader, frame.header, FrameType.HELLO)
        if VERSION not in hello.versions:
            raise ProtocolError(
                "version", f"{hello.name} does not support protocol version {VERSION}, which this side needs"
            )
        self._hello = hello
        return HelloReceived(Identity(hello.name, hello.role))

    def _on_offer(self, transfer: int, frame: Frame) -> Iterator[FileOffered]:
        if transfer <= self._last_offered:
            raise ProtocolError("bad_frame", f"the transfer number {transfer} was used before")
        self._last_offered = transfer
        try:
            header = FileHeader.model_validate_json(frame.header)
        except ValidationError as error:
            refusal = Refusal(code="bad_header", message=problems_of(error)[:1000])
            self._out.put(encode(FrameType.ANSWER, AnswerHeader(refused=refusal), transfer=transfer))
            return
        inline = header.size <= INLINE_BYTES
        if len(frame.body) != (header.size if inline else 0):
            raise ProtocolError("bad_frame", f"an OFFER of {header.size} bytes with a body of {len(frame.body)}")
        self._offered[transfer] = header
        if len(self._receiving) + len(self._finishing) >= MAX_OPEN_TRANSFERS:
            message = f"{MAX_OPEN_TRANSFERS} transfers are open on this connection already"
            self.refuse(transfer, Refused("busy", message, retry=True))
        else:
            yield FileOffered(transfer, header, frame.body if inline else None)

    def _on_piece(self, piece: Piece) -> BodyReceived | None:
        if piece.transfer > self._last_offered:
            raise ProtocolError("bad_frame", f"DATA of the transfer {piece.transfer}, which was not offered")
        receiving = self._receiving.get(piece.transfer)
        if receiving is None:
            return None  # it was refused while these bytes were under way
        end = piece.offset + len(piece.data)
        if piece.offset != receiving.next or end > receiving.size:
            raise ProtocolError("bad_offset", f"bytes {piece.offset} to {end}; byte {receiving.next} was due")
        receiving.next = end
        self._body_bytes += len(piece.data)
        complete = end == receiving.size
        if complete:
            del self._receiving[piece.transfer]
            self._finishing.add(piece.transfer)
        return BodyReceived(piece.transfer, piece.data, complete)
