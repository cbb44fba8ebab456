"""Non-blocking sockets, plain or TLS, behind one interface; and how sockets are created.

The kernel tunes the socket buffers itself, beyond what a fixed size would allow; only what is not yet sent is bounded,
so that a small urgent file does not wait behind megabytes of a large one.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Any, Final, Protocol

from fedsim.errors import FedsimError, Refused
from fedsim.wire.tls import explain

_TLS_BLOCK: Final = 256 << 10
_NOT_SENT_BYTES: Final = 2 << 20
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h; Python's socket module has no name for it
_KEEPALIVE: Final = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}


class SourceChangedError(FedsimError):
    """A file became shorter while it was sent."""


def tune(sock: socket.socket) -> None:
    """Make a socket non-blocking, send small frames without delay, and detect a dead host within a minute."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in _KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)


class Stream(Protocol):
    """A non-blocking stream of bytes. `None` means that it is not ready; errors raise OSError."""

    write_waits_for_read: bool
    read_waits_for_write: bool

    def fileno(self) -> int:
        """The socket's descriptor, -1 when closed."""

    def handshake(self) -> bool:
        """Continue the TLS handshake; returns whether it is complete."""

    def certificate(self) -> bytes | None:
        """The certificate (DER) whose key the other side has proved to hold; None on a plain connection."""

    def read_into(self, view: memoryview) -> int | None:
        """How many bytes were read; 0 when the other side has closed."""

    def write(self, view: memoryview, *, more: bool = False) -> int | None:
        """How many bytes were written; `more` follow at once."""

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        """Send up to `count` bytes of a file; once begun, repeat with the same range until it is sent."""

    def close(self) -> None:
        """Close the socket."""


class PlainStream:
    """A plain TCP socket; bodies are sent with sendfile, from the page cache to the socket."""

    write_waits_for_read = False
    read_waits_for_write = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """See Stream."""
        return self._sock.fileno()

    def handshake(self) -> bool:
        """See Stream."""
        return True

    def certificate(self) -> bytes | None:
        """See Stream."""
        return None

    def read_into(self, view: memoryview) -> int | None:
        """See Stream."""
        try:
            return self._sock.recv_into(view)
        except BlockingIOError:
            return None

    def write(self, view: memoryview, *, more: bool = False) -> int | None:
        """See Stream."""
        try:
            return self._sock.send(view, socket.MSG_MORE if more else 0)
        except BlockingIOError:
            return None

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        """See Stream."""
        try:
            sent = os.sendfile(self._sock.fileno(), descriptor, offset, count)
        except BlockingIOError:
            return None
        if not sent:
            raise SourceChangedError(f"the file ends at byte {offset}, before the size that was offered")
        return sent

    def close(self) -> None:
        """See Stream."""
        self._sock.close()


class TlsStream:
    """TLS over TCP. OpenSSL requires that an incomplete write is repeated with the same bytes."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, listening: bool) -> None:
        self._sock = context.wrap_socket(
            sock, server_side=listening, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        self._held = memoryview(b"")
        self.write_waits_for_read = False
        self.read_waits_for_write = False

    def fileno(self) -> int:
        """See Stream."""
        return self._sock.fileno()

    def handshake(self) -> bool:
        """See Stream."""
        self.read_waits_for_write = False
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self.read_waits_for_write = True
            return False
        except ssl.SSLError as error:
            raise _as_error(error) from error
        return True

    def certificate(self) -> bytes | None:
        """See Stream."""
        return self._sock.getpeercert(binary_form=True)

    def read_into(self, view: memoryview) -> int | None:
        """See Stream."""
        self.write_waits_for_read = False
        self.read_waits_for_write = False
        try:
            return self._sock.recv_into(view)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            self.read_waits_for_write = True
            return None
        except ssl.SSLZeroReturnError:
            return 0
        except ssl.SSLError as error:
            raise _as_error(error) from error

    def write(self, view: memoryview, *, more: bool = False) -> int | None:  # noqa: ARG002 - TLS makes its own records
        """See Stream."""
        try:
            return self._sock.send(view)
        except ssl.SSLWantWriteError:
            return None
        except ssl.SSLWantReadError:
            self.write_waits_for_read = True
            return None
        except ssl.SSLError as error:
            raise _as_error(error) from error

    def send_file(self, descriptor: int, offset: int, count: int) -> int | None:
        """See Stream."""
        if not self._held:
            self._held = memoryview(os.pread(descriptor, min(count, _TLS_BLOCK), offset))
            if not self._held:
                raise SourceChangedError(f"the file ends at byte {offset}, before the size that was offered")
        sent = self.write(self._held)
        if sent is not None:
            self._held = self._held[sent:]
        return sent

    def close(self) -> None:
        """See Stream."""
        self._sock.close()


def _as_error(error: ssl.SSLError) -> OSError | Refused:
    """The exception for an error of TLS: a broken connection is ordinary, everything else is explained."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLSyscallError | ssl.SSLZeroReturnError):
        return ConnectionError("it ended without closing TLS")
    return Refused("tls", explain(error), retry=True)


def make_stream(sock: socket.socket, context: ssl.SSLContext | None, *, listening: bool) -> Stream:
    """Make a stream of a TCP socket, for the side that listens or the one that connects; plain without a context."""
    tune(sock)
    return PlainStream(sock) if context is None else TlsStream(sock, context, listening=listening)


def start_connecting(family: int, address: Any) -> socket.socket:
    """Begin a connection without waiting; the socket becomes writable when it is established or has failed."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    result = sock.connect_ex(address)
    if result not in {0, errno.EINPROGRESS}:
        sock.close()
        raise OSError(result, os.strerror(result))
    return sock
