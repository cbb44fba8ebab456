"""Runs the protocol over a stream: reads, lets the protocol decide, writes; it never waits.

Its owner calls `handle` when the socket is ready, at the deadline, or when it was woken, from one thread at a time, and
checks `closed` afterwards. What may block for long (verifying a file and making it durable) is passed to `run`.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from fedsim.errors import Refused
from fedsim.wire.body import FileBody
from fedsim.wire.peer import Identity
from fedsim.wire.protocol.connection import ProtocolConnection
from fedsim.wire.protocol.events import (
    BodyReceived,
    ConnectionEvent,
    FileOffered,
    HelloReceived,
    OfferCancelled,
    OfferEnded,
)
from fedsim.wire.protocol.frames import ProtocolError, Refusal
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.protocol.outgoing import BodyRange, Outgoing
from fedsim.wire.tls import Certificate
from fedsim.wire.transport.receiving import Inbox, IncomingFiles
from fedsim.wire.transport.stream import SourceChangedError, Stream

_TURN_BYTES: Final = 8 << 20


class StreamConnection:
    """One connection.

    Args:
        stream: the socket.
        me: the identity of this side.
        limits: enforced on the connection.
        initiator: whether this side opened the connection; it speaks first.
        judge: called with the other side's certificate (None if the connection is plain); returns the accepted
            certificate if proof is required; raises Refused.
        welcome: called with the other side's identity once that is proved; raises Refused to reject it.
        offer_ended: called when a file that was offered is stored at the other side or refused.
        inbox: accepts the files that are offered; without one everything is refused.
        run: runs a job that may block.
        wake: requests a call of `handle`, from any thread.

    Attributes:
        shown: the name in the other side's certificate, even if that is not trusted (any more) or not welcome.
    """

    def __init__(
        self,
        stream: Stream,
        me: Identity,
        limits: ConnectionLimits,
        *,
        initiator: bool,
        judge: Callable[[bytes | None], Certificate | None],
        welcome: Callable[[Identity], None],
        offer_ended: Callable[[OfferEnded], None],
        inbox: Inbox | None,
        run: Callable[[Callable[[], None]], None],
        wake: Callable[[], None],
    ) -> None:
        self.shown: str | None = None
        self._stream = stream
        self._judge = judge
        self._welcome = welcome
        self._offer_ended = offer_ended
        self._certificate: Certificate | None = None
        self._protocol = ProtocolConnection(
            me, limits, initiator=initiator, accepts_files=inbox is not None, now=time.monotonic()
        )
        self._incoming = IncomingFiles(self._protocol, inbox, run, wake)
        self._sending: Outgoing | None = None
        self._secure = False
        self._input_ended = False
        self._released = False

    @property
    def peer(self) -> Identity | None:
        """The other side, once it is accepted."""
        return self._protocol.peer

    @property
    def peer_accepts_files(self) -> bool:
        """Whether the other side, once it is accepted, may be offered files."""
        return self._protocol.peer_accepts_files

    @property
    def closed(self) -> Refusal | None:
        """Why the connection has ended."""
        return self._protocol.closed

    @property
    def bytes_received(self) -> int:
        """Bytes of the protocol received so far."""
        return self._protocol.bytes_received

    def offer(self, outgoing: Outgoing) -> None:
        """Send a file, whose body is a `FileBody`; to be called by the owner outside `handle` or in a callback."""
        self._protocol.offer(outgoing)

    def cancel(self, outgoing: Outgoing) -> None:
        """Stop sending a file; its end is not reported."""
        self._protocol.cancel(outgoing)

    def interest(self) -> tuple[int, int]:
        """Descriptor and epoll events to wait for."""
        if self.closed is not None:
            return -1, 0
        events = 0
        if not self._protocol.overloaded:
            events |= select.EPOLLIN | select.EPOLLRDHUP
        wants_to_write = self._protocol.busy and self._secure and not self._stream.write_waits_for_read
        if wants_to_write or self._stream.read_waits_for_write:
            events |= select.EPOLLOUT
        return self._stream.fileno(), events

    @property
    def deadline(self) -> float | None:
        """When `handle` must be called even if nothing happens."""
        due = self._protocol.deadline
        if self._certificate is None or self.closed is not None:
            return due
        expires = time.monotonic() + self._certificate.not_after - time.time()
        return expires if due is None else min(due, expires)

    def handle(self, buffer: memoryview) -> bool:
        """Read, act, write; True if there is more to do at once."""
        if self.closed is not None:
            return False
        try:
            if not self._secure:
                if not self._stream.handshake():
                    self._protocol.check_time(time.monotonic())
                    return False
                self._secure = True
                self._prove()
                self._protocol.start()
            more = self._receive(buffer)
            if not self._is_closed():
                self._incoming.answer_finished(time.monotonic())
                unsent = self._flush(_TURN_BYTES)
                more = unsent or (more and not self._protocol.overloaded)
                self._check()
        except ProtocolError as error:
            self.close(error.code, str(error), retry=False)
        except Refused as refused:
            self.close(refused.code, str(refused), retry=refused.retry)
        except SourceChangedError as error:
            self._end(Refusal(code="source_changed", message=str(error), retry=True))
        except OSError as error:
            self._end(Refusal(code="lost", message=f"the connection broke: {error}", retry=True))
        if self._is_closed():
            self._release()
            return False
        return more

    def _is_closed(self) -> bool:
        return self.closed is not None

    def close(self, code: str, message: str, *, retry: bool) -> None:
        """Send the reason, as far as the socket accepts it at once, and close."""
        if self.closed is not None:
            return
        self._protocol.close(Refusal(code=code, message=message[:1000], retry=retry))
        if self._secure and self._protocol.sending is None:
            with suppress(OSError, Refused, SourceChangedError):  # it was closed already
                self._flush(1)
        self._release()

    def review(self) -> None:
        """The trusted certificates or the configured peers have changed: end the connection if it is not welcome."""
        if self.closed is not None or not self._secure:
            return  # the handshake will use what is configured then
        try:
            self._prove()
            if self.peer is not None:
                self._welcome(self.peer)
        except Refused as refused:
            self.close(refused.code, str(refused), retry=refused.retry)

    def _prove(self) -> None:
        try:
            self._certificate = self._judge(self._stream.certificate())
        except Refused as refused:
            self.shown = refused.who
            raise
        if self._certificate is not None:
            self.shown = self._certificate.owner.name

    def _receive(self, buffer: memoryview) -> bool:
        """Read until there is nothing, or the share of one turn was read: then True."""
        until = self.bytes_received + _TURN_BYTES
        while not self._protocol.overloaded and self.bytes_received < until:
            count = self._stream.read_into(buffer)
            if not count:
                self._input_ended = count == 0
                return False
            for event in self._protocol.receive(buffer[:count], time.monotonic()):
                self._on_event(event)
            if self.closed is not None:
                return False
        return True

    def _on_event(self, event: ConnectionEvent) -> None:
        match event:
            case BodyReceived():
                self._incoming.on_body(event)
            case OfferEnded():
                self._offer_ended(event)
            case OfferCancelled(transfer):
                self._incoming.on_cancel(transfer)
            case FileOffered() if self.peer is not None:
                self._incoming.on_offer(self.peer, event)
            case HelloReceived(identity):
                if self._certificate is not None and identity != self._certificate.owner:
                    owner = self._certificate.owner
                    raise Refused("wrong_name", f"its HELLO names {identity}, but its certificate is for {owner}")
                self._welcome(identity)
                self._protocol.accept()

    def _flush(self, budget: int) -> bool:
        """Send until the socket is full, nothing is left, or `budget` bytes were sent; True if more is left."""
        while budget > 0:
            output = self._protocol.next_output()
            for event in self._protocol.ended_offers():
                self._offer_ended(event)
            if output is None:
                return False
            self._keep_open(self._protocol.sending)
            if isinstance(output, BodyRange):
                sent = _body(output.outgoing).send(self._stream, output.offset, output.count)
            else:
                sent = self._stream.write(output.data, more=output.more)
            if sent is None:
                return False
            self._protocol.sent(sent)
            budget -= sent
        return True

    def _keep_open(self, outgoing: Outgoing | None) -> None:
        """Keep the body of a frame that has begun open until the frame is complete, even if it is cancelled."""
        if outgoing is self._sending:
            return
        if self._sending is not None:
            _body(self._sending).close()
        if outgoing is not None:
            _body(outgoing).hold()
        self._sending = outgoing

    def _check(self) -> None:
        if self._input_ended:
            self._end(Refusal(code="lost", message="the other side closed the connection", retry=True))
            return
        if self._certificate is not None and time.time() >= self._certificate.not_after:
            raise Refused("expired", f"the certificate of {self._certificate.owner} has expired", retry=True)
        self._protocol.check_time(time.monotonic())

    def _end(self, reason: Refusal) -> None:
        self._protocol.close(reason)
        self._release()

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        self._incoming.abandon()
        self._stream.close()
        self._keep_open(None)


def _body(outgoing: Outgoing) -> FileBody:
    if not isinstance(outgoing.body, FileBody):
        raise TypeError(f"{outgoing.body!r} is not a FileBody")
    return outgoing.body
