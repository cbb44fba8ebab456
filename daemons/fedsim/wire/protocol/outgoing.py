"""The sending half of a connection: chooses what is sent next, so that small files overtake large ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fedsim.spool.files import FileHeader
from fedsim.wire.protocol.frames import (
    INLINE_BYTES,
    PIECE_BYTES,
    AckHeader,
    AnswerHeader,
    FrameType,
    ProtocolError,
    Refusal,
    encode,
)

# Several bodies may be under way: while the other side makes one durable, the next is already being sent.
MAX_OPEN_BODIES: Final = 4
MAX_OPEN_TRANSFERS: Final = 64


@dataclass(eq=False)
class Outgoing:
    """A file to send. `body` belongs to the owner, who reads from it what `BodyRange` names.

    `available` returns how many bytes of it exist so far, of a file that still arrives; without it all of them do.
    """

    header: FileHeader
    body: object = field(repr=False)
    available: Callable[[], int] | None = field(default=None, repr=False)
    id: int = 0
    had: int = 0
    next: int = 0
    answered: bool = False
    bytes_on_wire: int = 0

    @property
    def offered(self) -> bool:
        """Whether its OFFER has been sent or is being sent."""
        return self.id > 0

    @property
    def inline(self) -> bool:
        """Whether the whole file is in its OFFER."""
        return self.header.size <= INLINE_BYTES

    @property
    def left(self) -> int:
        """Bytes of the body that are in no frame yet."""
        return self.header.size - self.next

    @property
    def sendable(self) -> int:
        """Bytes of the body that are in no frame yet and exist."""
        return self.left if self.available is None else max(0, min(self.header.size, self.available()) - self.next)


@dataclass(frozen=True)
class FrameBytes:
    """Bytes to send; `more` follow at once."""

    data: memoryview
    more: bool


@dataclass(frozen=True)
class BodyRange:
    """Bytes of a file's body to send."""

    outgoing: Outgoing
    offset: int
    count: int


@dataclass(frozen=True)
class Ended:
    """The end of a transfer, as the other side (or `too_large`, this one) decided it."""

    outgoing: Outgoing
    refusal: Refusal | None
    already_there: bool = False


@dataclass
class _Current:
    """A frame with a body that is being sent. Once begun it is completed, even if the transfer ends."""

    outgoing: Outgoing
    prefix: memoryview
    offset: int
    left: int


class OutgoingSide:
    """The frames to send on one connection, and the transfers that it offers."""

    def __init__(self) -> None:
        self._frames: deque[memoryview] = deque()
        # Dictionaries as ordered sets: a transfer is removed without a search.
        self._waiting_inline: dict[Outgoing, None] = {}
        self._waiting_bodies: dict[Outgoing, None] = {}
        self._open: dict[int, Outgoing] = {}
        self._open_bodies: dict[int, Outgoing] = {}
        self._last_id = 0
        self._current: _Current | None = None
        self.max_header_bytes = 0
        self.established = False
        self.body_bytes = 0
        self.ended: deque[Ended] = deque()

    @property
    def busy(self) -> bool:
        """Whether bytes are ready to be sent now."""
        return bool(self._frames) or self._current is not None

    @property
    def backlog(self) -> int:
        """The number of frames that wait to be sent."""
        return len(self._frames)

    @property
    def sending(self) -> Outgoing | None:
        """The transfer of which a frame has begun and not ended; its body must stay readable."""
        return None if self._current is None else self._current.outgoing

    @property
    def expects(self) -> bool:
        """Whether the other side owes an answer, or has not received what is ready."""
        return bool(self._open) or self.busy

    def put(self, frame: bytes) -> None:
        """Send a frame after those that wait."""
        self._frames.append(memoryview(frame))

    def offer(self, outgoing: Outgoing) -> None:
        """Queue a transfer, to be offered when there is capacity."""
        (self._waiting_inline if outgoing.inline else self._waiting_bodies)[outgoing] = None

    def cancel(self, outgoing: Outgoing) -> None:
        """Drop a transfer; the other side is notified if it was offered."""
        if self._open.get(outgoing.id) is outgoing:
            self._forget(outgoing)
            self.put(encode(FrameType.CANCEL, transfer=outgoing.id))
        self._waiting_inline.pop(outgoing, None)
        self._waiting_bodies.pop(outgoing, None)

    def on_answer(self, transfer: int, answer: AnswerHeader) -> None:
        """Handle an ANSWER; `ProtocolError` if it does not fit."""
        outgoing = self._known(transfer)
        if outgoing is None:
            return
        if answer.refused is not None or answer.stored:
            self._finish(outgoing, answer.refused, already=answer.stored)
            return
        if outgoing.answered or outgoing.inline or answer.have > outgoing.header.size:
            raise ProtocolError("bad_frame", f"an ANSWER that does not fit the transfer {transfer}")
        outgoing.answered = True
        outgoing.had = outgoing.next = answer.have

    def on_ack(self, transfer: int, ack: AckHeader) -> None:
        """Handle an ACK; `ProtocolError` if it does not fit."""
        outgoing = self._known(transfer)
        if outgoing is None:
            return
        if ack.refused is None and not outgoing.inline and (not outgoing.answered or outgoing.left):
            raise ProtocolError("bad_frame", f"an ACK before the transfer {transfer} was sent")
        self._finish(outgoing, ack.refused, already=not outgoing.inline and outgoing.had == outgoing.header.size)

    def next_output(self) -> FrameBytes | BodyRange | None:
        """What to send next; the same until `sent` says that it was."""
        while True:
            if self._current is not None:
                if self._current.prefix:
                    return FrameBytes(self._current.prefix, more=self._current.left > 0)
                return BodyRange(self._current.outgoing, self._current.offset, self._current.left)
            if self._frames:
                return FrameBytes(self._frames[0], more=False)
            if not (self.established and (self._offer_next() or self._begin_piece())):
                return None

    def sent(self, count: int) -> None:
        """Note that `count` bytes of `next_output` were sent."""
        current = self._current
        if current is None:
            self._frames[0] = self._frames[0][count:]
            if not self._frames[0]:
                self._frames.popleft()
        elif current.prefix:
            current.prefix = current.prefix[count:]
        else:
            current.offset += count
            current.left -= count
            self.body_bytes += count
        if current is not None and not current.prefix and not current.left:
            self._current = None

    def _known(self, transfer: int) -> Outgoing | None:
        """The transfer, or None for one that was cancelled meanwhile."""
        if transfer > self._last_id:
            raise ProtocolError("bad_frame", f"the transfer {transfer} was never offered")
        return self._open.get(transfer)

    def _forget(self, outgoing: Outgoing) -> None:
        del self._open[outgoing.id]
        self._open_bodies.pop(outgoing.id, None)

    def _finish(self, outgoing: Outgoing, refusal: Refusal | None, *, already: bool) -> None:
        self._forget(outgoing)
        self.ended.append(Ended(outgoing, refusal, already))

    def _begin_piece(self) -> bool:
        """Begin a piece of the body of which the least is left; False if there is none to send."""
        ready = [item for item in self._open_bodies.values() if item.answered and item.sendable]
        if not ready:
            return False
        outgoing = min(ready, key=lambda item: (item.left, item.id))
        size = min(outgoing.sendable, PIECE_BYTES)
        prefix = encode(FrameType.DATA, transfer=outgoing.id, offset=outgoing.next, body_size=size)
        self._current = _Current(outgoing, memoryview(prefix), outgoing.next, size)
        outgoing.next += size
        outgoing.bytes_on_wire += len(prefix) + size
        return True

    def _offer_next(self) -> bool:
        if len(self._open) >= MAX_OPEN_TRANSFERS:
            return False
        if self._waiting_inline:
            waiting = self._waiting_inline
        elif self._waiting_bodies and len(self._open_bodies) < MAX_OPEN_BODIES:
            waiting = self._waiting_bodies
        else:
            return False
        outgoing = next(iter(waiting))
        del waiting[outgoing]
        self._offer(outgoing)
        return True

    def _offer(self, outgoing: Outgoing) -> None:
        self._last_id += 1
        outgoing.id = self._last_id
        size = outgoing.header.size if outgoing.inline else 0
        frame = encode(FrameType.OFFER, outgoing.header, transfer=outgoing.id, body_size=size)
        if len(frame) > self.max_header_bytes:
            message = f"its header has {len(frame)} bytes; the other side accepts {self.max_header_bytes}"
            self.ended.append(Ended(outgoing, Refusal(code="too_large", message=message)))
            return
        self._open[outgoing.id] = outgoing
        outgoing.bytes_on_wire += len(frame) + size
        if not outgoing.inline:
            self._open_bodies[outgoing.id] = outgoing
        self._current = _Current(outgoing, memoryview(frame), 0, size)
