"""The sending half of a link: which frame goes next, so that small files overtake and bodies come piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fedsim.errors import Refused
from fedsim.spool.files import FileHeader
from fedsim.wire.body import Source
from fedsim.wire.frames import INLINE_BYTES, PIECE_BYTES, Ack, Answer, FrameType, ProtocolError, Refusal, encode
from fedsim.wire.stream import Stream

# Several bodies may be on their way: while one is made durable over there, the next already travels.
MAX_OPEN_BODIES = 4
MAX_OPEN_TRANSFERS = 64


@dataclass
class _Piece:
    """A DATA frame on its way. Once begun it must be sent to its end, whatever becomes of the transfer."""

    prefix: memoryview
    source: Source
    offset: int
    left: int


@dataclass(eq=False)
class Outgoing:
    """One file on its way. `finished(refused, already_there)` is called once, unless the connection breaks before."""

    header: FileHeader
    source: Source
    finished: Callable[[Refused | None, bool], None]
    id: int = 0
    had: int = 0
    next: int = 0
    answered: bool = False
    bytes_on_wire: int = 0

    @property
    def offered(self) -> bool:
        """Whether the other side hears of it."""
        return self.id > 0

    @property
    def inline(self) -> bool:
        """Whether the whole file lies in its OFFER."""
        return self.header.size <= INLINE_BYTES

    @property
    def left(self) -> int:
        """Bytes of the body that no piece has taken yet."""
        return self.header.size - self.next


class OutgoingSide:
    """Frames waiting to leave one link, and the transfers that it has offered."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._frames: deque[memoryview] = deque()
        self._waiting: list[Outgoing] = []
        self._open: dict[int, Outgoing] = {}
        self._last_id = 0
        self._piece: _Piece | None = None
        self.max_header_bytes = 0
        self.established = False
        self.body_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether there are bytes that want to leave now."""
        return bool(self._frames) or self._piece is not None

    @property
    def backlog(self) -> int:
        """How many frames wait to leave."""
        return len(self._frames)

    @property
    def expects(self) -> bool:
        """Whether the other side owes an answer, or bytes to it have not left."""
        return bool(self._open) or self.busy

    @property
    def unfinished(self) -> list[Outgoing]:
        """Every transfer whose end is not known."""
        return [*self._open.values(), *self._waiting]

    def put(self, frame: bytes) -> None:
        """Let a frame leave as soon as the one that has begun is sent."""
        self._frames.append(memoryview(frame))

    def offer(self, outgoing: Outgoing) -> None:
        """Take a transfer in; it is offered when its turn comes."""
        self._waiting.append(outgoing)

    def cancel(self, outgoing: Outgoing) -> None:
        """Forget a transfer; the other side is told if it was offered."""
        if outgoing in self._waiting:
            self._waiting.remove(outgoing)
        elif self._open.get(outgoing.id) is outgoing:
            del self._open[outgoing.id]
            self.put(encode(FrameType.CANCEL, transfer=outgoing.id))

    def on_answer(self, transfer: int, answer: Answer) -> None:
        """The other side has said what it has; `ProtocolError` if that makes no sense."""
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

    def on_ack(self, transfer: int, ack: Ack) -> None:
        """The other side has the whole file in place, or has refused it."""
        outgoing = self._known(transfer)
        if outgoing is None:
            return
        if ack.refused is None and not outgoing.inline and (not outgoing.answered or outgoing.left):
            raise ProtocolError("bad_frame", f"an ACK before the transfer {transfer} was sent")
        self._finish(outgoing, ack.refused, already=not outgoing.inline and outgoing.had == outgoing.header.size)

    def flush(self, budget: int) -> bool:
        """Send until the socket is full, nothing is left, or `budget` bytes are gone; True if it should go on."""
        while budget > 0:
            if self._piece is not None:
                sent = self._send_piece(self._piece)
            elif self._frames:
                sent = self._send_frame()
            elif self.established and self._next_frame():
                continue
            else:
                return False
            if sent is None:
                return False
            budget -= sent
        return True

    def close(self) -> list[Outgoing]:
        """The connection is gone: what is unfinished goes back to the one who offered it."""
        unfinished = self.unfinished
        self._open.clear()
        self._waiting.clear()
        self._frames.clear()
        if self._piece is not None:
            self._piece.source.close()
            self._piece = None
        return unfinished

    def _known(self, transfer: int) -> Outgoing | None:
        """The transfer, or None for one that was cancelled meanwhile."""
        if transfer > self._last_id:
            raise ProtocolError("bad_frame", f"the transfer {transfer} was never offered")
        return self._open.get(transfer)

    def _finish(self, outgoing: Outgoing, refusal: Refusal | None, *, already: bool) -> None:
        del self._open[outgoing.id]
        refused = None if refusal is None else Refused(refusal.code, refusal.message, retry=refusal.retry)
        outgoing.finished(refused, already)

    def _send_frame(self) -> int | None:
        sent = self._stream.write(self._frames[0])
        if sent is None:
            return None
        if sent < len(self._frames[0]):
            self._frames[0] = self._frames[0][sent:]
        else:
            self._frames.popleft()
        return sent

    def _send_piece(self, piece: _Piece) -> int | None:
        if piece.prefix:
            sent = self._stream.write(piece.prefix, more=True)
            if sent is not None:
                piece.prefix = piece.prefix[sent:]
            return sent
        sent = piece.source.send(self._stream, piece.offset, piece.left)
        if sent is None:
            return None
        piece.offset += sent
        piece.left -= sent
        self.body_bytes += sent
        if not piece.left:
            piece.source.close()
            self._piece = None
        return sent

    def _next_frame(self) -> bool:
        """Choose what leaves next: an offer, or a piece of the body of which the least is left."""
        if self._offer_next():
            return True
        ready = [item for item in self._open.values() if item.answered and item.left]
        if not ready:
            return False
        outgoing = min(ready, key=lambda item: (item.left, item.id))
        size = min(outgoing.left, PIECE_BYTES)
        prefix = encode(FrameType.DATA, transfer=outgoing.id, offset=outgoing.next, body_size=size)
        outgoing.source.hold()
        self._piece = _Piece(memoryview(prefix), outgoing.source, outgoing.next, size)
        outgoing.next += size
        outgoing.bytes_on_wire += len(prefix) + size
        return True

    def _offer_next(self) -> bool:
        if len(self._open) >= MAX_OPEN_TRANSFERS:
            return False
        bodies = sum(not item.inline for item in self._open.values())
        for outgoing in self._waiting:
            if outgoing.inline or bodies < MAX_OPEN_BODIES:
                self._waiting.remove(outgoing)
                self._offer(outgoing)
                return True
        return False

    def _offer(self, outgoing: Outgoing) -> None:
        self._last_id += 1
        outgoing.id = self._last_id
        body = outgoing.source.read_all() if outgoing.inline else b""
        if outgoing.inline and len(body) != outgoing.header.size:
            outgoing.finished(Refused("source_changed", "the file became shorter while it was sent"), False)
            return
        frame = encode(FrameType.OFFER, outgoing.header, transfer=outgoing.id, body_size=len(body)) + body
        header_size = len(frame) - len(body)
        if header_size > self.max_header_bytes:
            message = f"its header has {header_size} bytes; the other side takes {self.max_header_bytes}"
            outgoing.finished(Refused("too_large", message), False)
            return
        self._open[outgoing.id] = outgoing
        outgoing.bytes_on_wire += len(frame)
        self.put(frame)
