"""A client's connection with buffers for an incomplete request and for a response that is not sent yet.

Neither side blocks. So a slow client, whether or not it is slow on purpose, costs memory but never a thread.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections import deque
from dataclasses import dataclass
from typing import IO, Any

from gunicorn.http import get_parser

MAX_HEAD_BYTES = 64 * 1024
RECEIVE_BYTES = 64 * 1024
# The rest of a longer response is buffered on disk, so that slow readers of large responses do not fill the memory.
MEMORY_BYTES = 1024 * 1024
# The most bytes sent to one client before the others are served.
SLICE_BYTES = 1024 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,18})[ \t]*$", re.IGNORECASE | re.MULTILINE)
_UNMEASURED = re.compile(rb"^(?:content-length|transfer-encoding)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_EXPECTS = re.compile(rb"^expect:[ \t]*100-continue[ \t]*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Framing:
    """Where a request ends.

    Args:
        size: its bytes, head and body.
        measured: False if the head does not declare the length of the body, or one beyond the limit: such a request
            is answered from its head alone, and the connection is closed.
        expects_continue: whether the client waits for `100 Continue` before it sends the body.
    """

    size: int
    measured: bool = True
    expects_continue: bool = False


def find_end(received: bytes | bytearray, max_body_bytes: int) -> Framing | None:
    """Find the end of the first request in `received`; None while its head is incomplete.

    Only its length is determined here; gunicorn's parser validates the head.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end]).replace(b"\r\n", b"\n")
    size = end + 4
    lengths = _LENGTH.findall(head)
    if len(lengths) == len(_UNMEASURED.findall(head)) <= 1:
        body = int(lengths[0]) if lengths else 0
        if body <= max_body_bytes:
            return Framing(size + body, expects_continue=bool(body and _EXPECTS.search(head)))
    return Framing(size, measured=False)


@dataclass
class _Part:
    """A section of a file."""

    descriptor: int
    at: int
    left: int


class SendBuffer:
    """Replaces the socket while a thread computes a response: stores what gunicorn writes for `send_some` to send."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: deque[bytearray | _Part] = deque()
        self._in_memory = 0
        self._overflow: IO[bytes] | None = None
        self._descriptors: list[int] = []

    # -- called by gunicorn
    def sendall(self, data: bytes) -> None:
        """Store the bytes, in memory or, beyond a limit, on disk."""
        self.size += len(data)
        last = self._pieces[-1] if self._pieces else None
        if self._in_memory + len(data) <= MEMORY_BYTES:
            self._in_memory += len(data)
            if isinstance(last, bytearray):
                last += data
            else:
                self._pieces.append(bytearray(data))
            return
        if self._overflow is None:
            self._overflow = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - `close` closes it
        at = self._overflow.seek(0, os.SEEK_END)
        self._overflow.write(data)
        if isinstance(last, _Part) and last.descriptor == self._overflow.fileno():
            last.left += len(data)
        else:
            self._pieces.append(_Part(self._overflow.fileno(), at, len(data)))

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int = 0) -> None:
        """Store a section of a file, through a duplicated descriptor: the application closes its own at once."""
        self.size += count
        self._descriptors.append(os.dup(file.fileno()))
        self._pieces.append(_Part(self._descriptors[-1], offset, count))

    def send(self, data: bytes) -> int:
        """Discard gunicorn's `100 Continue`, which was sent when the head had arrived."""
        return len(data)

    def recv(self, _size: int) -> bytes:
        """Return the end of the stream: the parser already has the whole request."""
        return b""

    def gettimeout(self) -> float:
        """Nothing here blocks."""
        return 0.0

    def setblocking(self, _flag: bool) -> None:
        """Nothing here blocks."""

    settimeout = setblocking
    shutdown = setblocking

    # -- called by the loop
    def send_some(self, to: socket.socket) -> bool:
        """Send as much as the client accepts now; returns whether that was everything.

        Raises:
            OSError: the client is gone, or a file is shorter than declared.
        """
        budget = SLICE_BYTES
        while self._pieces and budget > 0:
            piece = self._pieces[0]
            try:
                sent = _send(to, piece, budget)
            except BlockingIOError:
                return False
            budget -= sent
            if not (piece if isinstance(piece, bytearray) else piece.left):
                self._pieces.popleft()
        return not self._pieces

    def close(self) -> None:
        """Close the files."""
        self._pieces.clear()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        if self._overflow is not None:
            self._overflow.close()
            self._overflow = None


def _send(to: socket.socket, piece: bytearray | _Part, most: int) -> int:
    if isinstance(piece, bytearray):
        with memoryview(piece) as view:
            sent = to.send(view[:most])
        del piece[:sent]
        return sent
    sent = os.sendfile(to.fileno(), piece.descriptor, piece.at, min(piece.left, most))
    if sent == 0:
        raise OSError("a file became shorter while it was sent")
    piece.at += sent
    piece.left -= sent
    return sent


class BufferedConnection:
    """A client's connection; gunicorn's `ThreadWorker.handle` uses `sock`, `parser`, `client` and `server`."""

    initialized = data_ready = True
    is_http2 = False

    def __init__(self, config: Any, accepted: socket.socket, client: Any, server: Any) -> None:
        accepted.setblocking(False)
        self.config = config
        self.socket = accepted
        self.client = client
        self.server = server
        self.sock = SendBuffer()
        self.parser: Any = None
        self.deadline: float | None = None  # monotonic seconds; None while a thread works
        self.received = bytearray()
        self.sent_continue = False
        self.measured = True

    def init(self) -> None:
        """Do nothing: gunicorn would set up TLS and HTTP/2 here, which are not used."""

    def receive(self) -> bool:
        """Read what has arrived; False if the client has closed the connection.

        Raises:
            OSError: the client is gone.
        """
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return True
        self.received += data
        return bool(data)

    def begin(self, framing: Framing) -> None:
        """Hand the request to the parser, without anything that follows it."""
        size = framing.size if framing.measured else len(self.received)
        content = bytes(self.received[:size])
        del self.received[:size]
        self.measured = framing.measured
        self.sent_continue = False
        self.sock = SendBuffer()
        self.parser = _OneRequest(get_parser(self.config, [content], self.client), keeps=framing.measured)

    def close(self, graceful: bool = False) -> None:  # noqa: ARG002 - gunicorn's
        """Close the socket and discard what was not sent."""
        self.sock.close()
        self.socket.close()


class _OneRequest:
    """gunicorn's parser for a single request; one of unknown length ends the connection."""

    def __init__(self, parser: Any, *, keeps: bool) -> None:
        self._parser = parser
        self._keeps = keeps

    def __next__(self) -> Any:
        request = next(self._parser)
        if not self._keeps:
            request.force_close()
        return request
