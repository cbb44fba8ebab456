"""One connection: the protocol of PROTOCOL.md as a state machine, the same on both ends.

A link never waits. Whoever owns it calls `handle` when its socket is ready, when its deadline has come or when it was
woken, from one thread at a time, and looks at `closed` afterwards. What arrives goes to an Inbox; what may block for
long (verifying a file and making it durable) runs elsewhere by `run`.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Final

from fedsim import __version__
from fedsim.errors import Refused
from fedsim.wire.frames import (
    VERSION,
    Ack,
    Answer,
    FrameType,
    Hello,
    ProtocolError,
    Refusal,
    encode,
    parse_header,
)
from fedsim.wire.incoming import Inbox, IncomingSide
from fedsim.wire.limits import ConnectionLimits, Pace
from fedsim.wire.outgoing import MAX_OPEN_TRANSFERS, Outgoing, OutgoingSide
from fedsim.wire.peer import Identity
from fedsim.wire.reader import Frame, FrameReader, Piece
from fedsim.wire.stream import SourceChangedError, Stream
from fedsim.wire.tls import Certificate

_TURN_BYTES: Final = 8 << 20
_MOST_BACKLOG: Final = 4 * MAX_OPEN_TRANSFERS


class ProtocolSession:
    """Speaks the protocol over one stream.

    Args:
        stream: the connection.
        me: who this side is.
        rules: what it puts up with.
        initiator: whether this side opened the connection; it speaks first.
        judge: called with the other side's certificate (None if the connection is plain): whom that proves it to be,
            if anything must be proven; raises Refused.
        welcome: called with the other side's identity when that is proven; raises Refused to turn it away.
        inbox: takes the files that are offered; without one everything is refused.
        run: runs a job that may block.
        wake: asks for `handle` to be called, from any thread.
    """

    def __init__(
        self,
        stream: Stream,
        me: Identity,
        rules: ConnectionLimits,
        *,
        initiator: bool,
        judge: Callable[[bytes | None], Certificate | None],
        welcome: Callable[[Identity], None],
        inbox: Inbox | None,
        run: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
    ) -> None:
        self.peer: Identity | None = None
        # The name in the other side's certificate, also where that is not believed (any more) or not welcome.
        self.shown: str | None = None
        self.closed: Refusal | None = None
        self._stream = stream
        self._me = me
        self._rules = rules
        self._initiator = initiator
        self._judge = judge
        self._welcome = welcome
        self._certificate: Certificate | None = None
        self._valid_until = float("inf")
        self._reader = FrameReader()
        self._out = OutgoingSide(stream)
        self._in = IncomingSide(inbox, self._out.put, run, wake)
        self._secure = False
        now = time.monotonic()
        self._opened_at = self._active_at = self._heard_at = now
        self._frame_since: float | None = None
        self._pace = Pace(rules, now)
        self._expecting = False
        self._pinged = False

    # -- what the owner asks

    @property
    def established(self) -> bool:
        """Whether both sides have said who they are."""
        return self.peer is not None

    @property
    def bytes_received(self) -> int:
        """Bytes read from the connection."""
        return self._reader.bytes_read

    def offer(self, outgoing: Outgoing) -> None:
        """Send a file when its turn comes; to be called by the owner, outside `handle` or from a callback in it."""
        self._out.offer(outgoing)

    def cancel(self, outgoing: Outgoing) -> None:
        """Stop sending a file; its `finished` is not called any more."""
        self._out.cancel(outgoing)

    def interest(self) -> tuple[int, int]:
        """Descriptor and epoll events to wait for."""
        if self.closed is not None:
            return -1, 0
        events = 0
        if self._out.backlog < _MOST_BACKLOG:  # who does not read our answers is not read either
            events |= select.EPOLLIN | select.EPOLLRDHUP
        wants_to_write = self._out.busy and self._secure and not self._stream.write_waits_for_read
        if wants_to_write or self._stream.read_waits_for_write:
            events |= select.EPOLLOUT
        return self._stream.fileno(), events

    @property
    def deadline(self) -> float | None:
        """When `handle` must be called even if nothing happens."""
        if self.closed is not None:
            return None
        return min(*self._deadlines(), self._valid_until)

    def handle(self, buffer: memoryview) -> bool:
        """Read, act, write; True if there is more to do at once."""
        if self.closed is not None:
            return False
        try:
            if not self._secure:
                if not self._stream.handshake():
                    self._check_time()
                    return False
                self._begin()
            more = self._receive(buffer)
            if self._is_closed():
                return False
            if self._in.answer_finished():
                self._active_at = time.monotonic()
            unsent = self._out.flush(_TURN_BYTES)
            more = unsent or (more and self._out.backlog < _MOST_BACKLOG)
            self._note_progress()
            if self._reader.ended:
                self._end(Refusal(code="lost", message="the other side closed the connection", retry=True))
            else:
                self._check_time()
        except ProtocolError as error:
            self.close(error.code, str(error), retry=False)
            return False
        except Refused as refused:
            self.close(refused.code, str(refused), retry=refused.retry)
            return False
        except SourceChangedError as error:
            self._end(Refusal(code="source_changed", message=str(error), retry=True))
            return False
        except OSError as error:
            self._end(Refusal(code="lost", message=f"the connection broke: {error}", retry=True))
            return False
        return more and self.closed is None

    def close(self, code: str, message: str, *, retry: bool) -> None:
        """Say why, as far as the socket takes it at once, and let go."""
        if self.closed is not None:
            return
        reason = Refusal(code=code, message=message[:1000], retry=retry)
        if self._secure and not self._out.busy:
            try:
                self._out.put(encode(FrameType.BYE, reason))
                self._out.flush(1)
            except (OSError, Refused):
                pass  # it was gone already
        self._end(reason)

    def review(self) -> None:
        """What is known of the other side has changed: if it is not welcome any more, the connection ends."""
        if self.closed is not None or not self._secure:
            return  # what is not secure yet will be judged by what is known then
        try:
            self._prove()
            if self.peer is not None:
                self._welcome(self.peer)
        except Refused as refused:
            self.close(refused.code, str(refused), retry=refused.retry)

    def take_back(self) -> list[Outgoing]:
        """After the end: the transfers whose end is not known."""
        return self._out.close()

    def _is_closed(self) -> bool:
        return self.closed is not None

    # -- the handshake

    def _begin(self) -> None:
        self._secure = True
        self._prove()
        if self._initiator:
            self._say_hello()

    def _prove(self) -> None:
        try:
            self._certificate = self._judge(self._stream.certificate())
        except Refused as refused:
            self.shown = refused.who
            raise
        if self._certificate is not None:
            self.shown = self._certificate.owner.name
            self._valid_until = time.monotonic() + self._certificate.not_after - time.time()

    def _say_hello(self) -> None:
        hello = Hello(
            name=self._me.name,
            role=self._me.role,
            versions=(VERSION,),
            software=__version__,
            max_header_bytes=self._rules.max_header_bytes,
        )
        self._out.put(encode(FrameType.HELLO, hello))

    def _on_hello(self, frame: Frame) -> None:
        if self.peer is not None:
            raise ProtocolError("bad_frame", "a second HELLO")
        hello = parse_header(Hello, frame.header, FrameType.HELLO)
        if VERSION not in hello.versions:
            raise ProtocolError("version", f"{hello.name} speaks none of the protocol versions spoken here: {VERSION}")
        identity = Identity(hello.name, hello.role)
        if self._certificate is not None and identity != self._certificate.owner:
            told = f"it says that it is {identity}, but its certificate is for {self._certificate.owner}"
            raise Refused("wrong_name", told)
        self._welcome(identity)
        self.peer = identity
        if not self._initiator:
            self._say_hello()
        self._reader.max_header_bytes = self._rules.max_header_bytes
        self._out.max_header_bytes = hello.max_header_bytes
        self._out.established = True

    # -- what comes in

    def _receive(self, buffer: memoryview) -> bool:
        """Read until there is nothing, or a turn's share was read: then True."""
        until = self._reader.bytes_read + _TURN_BYTES
        before = self._reader.bytes_read
        while self.closed is None:
            if self._out.backlog >= _MOST_BACKLOG:
                return True
            item = self._reader.read(self._stream, buffer)
            if item is None:
                break
            if isinstance(item, Piece):
                self._in.on_piece(item)
            else:
                self._frame_since = None
                self._on_frame(item)
            if self._reader.bytes_read >= until:
                break
        if self._reader.bytes_read != before:
            now = time.monotonic()
            self._active_at = self._heard_at = now
            self._pinged = False
        if not self._reader.midway:
            self._frame_since = None
        elif self._frame_since is None:
            self._frame_since = time.monotonic()
        return self._reader.bytes_read >= until

    def _on_frame(self, frame: Frame) -> None:
        kind, transfer = frame.prefix.type, frame.prefix.transfer
        if kind is FrameType.HELLO:
            self._on_hello(frame)
            return
        if kind is FrameType.BYE:
            self._end(parse_header(Refusal, frame.header, kind))
            return
        if self.peer is None:
            raise ProtocolError("bad_frame", f"a {kind.name} before the handshake")
        match kind:
            case FrameType.OFFER:
                self._in.on_offer(self.peer, frame)
            case FrameType.ANSWER:
                self._out.on_answer(transfer, parse_header(Answer, frame.header, kind))
            case FrameType.ACK:
                self._out.on_ack(transfer, parse_header(Ack, frame.header, kind))
            case FrameType.CANCEL:
                self._in.on_cancel(transfer)
            case FrameType.PING:
                self._out.put(encode(FrameType.PONG))

    # -- time

    def _note_progress(self) -> None:
        """A body that moves counts as a sign of life; waiting for an answer begins when something is asked."""
        now = time.monotonic()
        if self._out.body_bytes or (self._out.expects and not self._expecting):
            self._heard_at = self._active_at = now
            self._pinged = False
        self._expecting = self._out.expects
        self._out.body_bytes = 0
        self._pace.note(now, body_bytes=self._in.body_bytes, due=self._in.expects)
        self._in.body_bytes = 0

    def _deadlines(self) -> list[float]:
        rules = self._rules
        if self.peer is None:
            return [self._opened_at + rules.quiet_seconds]
        deadlines = []
        if self._frame_since is not None:
            deadlines.append(self._frame_since + rules.quiet_seconds)
        if self._pace.deadline is not None:
            deadlines.append(self._pace.deadline)
        if self._out.expects:
            share = 1.0 if self._pinged else 0.5
            deadlines.append(self._heard_at + share * rules.stall_seconds)
        if not deadlines and not self._in.finishing:
            deadlines.append(self._active_at + rules.idle_seconds)
        return deadlines or [time.monotonic() + rules.idle_seconds]

    def _check_time(self) -> None:
        now, rules = time.monotonic(), self._rules
        if self._certificate is not None and time.time() >= self._certificate.not_after:
            raise Refused("expired", f"the certificate of {self._certificate.owner} has expired", retry=True)
        if self.peer is None:
            if now >= self._opened_at + rules.quiet_seconds:
                raise Refused("too_slow", f"no handshake within {rules.quiet_seconds:g} seconds", retry=True)
            return
        if self._frame_since is not None and now >= self._frame_since + rules.quiet_seconds:
            raise Refused("too_slow", f"a header did not come within {rules.quiet_seconds:g} seconds", retry=True)
        if self._pace.deadline is not None and now >= self._pace.deadline:
            rate, patience = rules.min_bytes_per_second, rules.quiet_seconds
            message = f"of the bodies that are due it sent less than {rate} bytes per second for {patience:g} seconds"
            raise Refused("too_slow", message, retry=True)
        if self._out.expects:
            self._check_stall(now)
        elif not self._in.finishing and now >= self._active_at + rules.idle_seconds:
            raise Refused("idle", f"nothing was sent for {rules.idle_seconds:g} seconds", retry=True)

    def _check_stall(self, now: float) -> None:
        stall = self._rules.stall_seconds
        if now >= self._heard_at + stall:
            raise Refused("lost", f"the other side did not answer for {stall:g} seconds", retry=True)
        if not self._pinged and now >= self._heard_at + stall / 2:
            self._pinged = True
            self._out.put(encode(FrameType.PING))
            self._out.flush(1)

    def _end(self, reason: Refusal) -> None:
        if self.closed is not None:
            return
        self.closed = reason
        self._in.abandon()
        self._stream.close()
