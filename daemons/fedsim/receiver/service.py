"""The sockets of the receiver: who may connect, how many connections there are, and what each one does."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import Final

import structlog

from fedsim.activation import passed_sockets
from fedsim.config import Address, Limits, ReceiverConfig
from fedsim.errors import FedsimError, Refused, Unavailable
from fedsim.receiver.counters import Counters
from fedsim.receiver.inbox import SpoolInbox
from fedsim.spool.clear import clear_leftovers
from fedsim.spool.files import Role
from fedsim.spool.layout import Spool
from fedsim.wire import Identity
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.tls import Credentials, judge
from fedsim.wire.transport.expiry import ExpiryWatch
from fedsim.wire.transport.reactor import Reactor
from fedsim.wire.transport.stream import make_stream
from fedsim.wire.transport.stream_connection import StreamConnection

_BACKLOG: Final = 512
_QUIET_LOG_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.5
# What an ordinary peer does; only others are worth a line.
_ORDINARY_ENDS: Final = frozenset({"closed", "lost", "idle", "stopping"})


def listen(address: Address) -> socket.socket:
    """Open the port; `Unavailable` names it if that cannot be done."""
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.address, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise Unavailable(f"{address} cannot be listened on: {error}; correct `listen:`") from error
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        hint = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror
        raise Unavailable(
            f"port {address.port} on {address.address} cannot be used: {hint}; change `listen:`"
        ) from error
    return sock


def take_over(spool: Spool) -> int:
    """A descriptor that holds the spool for this process; `Unavailable` if another receiver works on it."""
    descriptor = os.open(spool.incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Unavailable(
            f"another receiver works on the spool {spool.root}: stop it, or give this one its own"
        ) from error
    return descriptor


class Receiver:
    """Listens, and serves every connection on `limits.threads` threads."""

    def __init__(self, config: ReceiverConfig) -> None:
        self.counters = Counters()
        self.spool = Spool(config.spool)
        self.config = config
        self.inbox = SpoolInbox(config, self.spool, self.counters)
        self.me = Identity(config.name, Role(config.role))
        self.reactor = Reactor("receiver", config.limits.threads)
        self.credentials = Credentials.of(config.tls, self.me)
        self._expiry = ExpiryWatch(self.credentials)
        self._connections: set[IncomingConnection] = set()
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._hold = -1
        self._log = structlog.get_logger()
        self._quiet: dict[str | None, _Quiet] = {}

    def start(self) -> None:
        """Sweep, listen, serve; `Unavailable` if the port or the spool is another's."""
        config = self.config
        plain = config.tls is None and not config.insecure_plaintext
        self._hold = take_over(self.spool)
        try:
            sockets = passed_sockets(config.listen, plain=plain) or [listen(config.listen)]
        except FedsimError:
            self._let_go()
            raise
        self.sweep()
        self._listeners = [Listener(self, sock) for sock in sockets]
        self.reactor.start()
        for listener in self._listeners:
            self.reactor.add(listener)
        self.reactor.add(self._expiry)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listeners[0].port if self._listeners else 0

    def sweep(self) -> None:
        """Remove partly received files that were not resumed."""
        ledger = self.inbox.ledger
        gone = clear_leftovers(self.spool, self.config.limits.keep_partial_seconds, ledger.in_use())
        ledger.look()
        if gone:
            self._log.info("leftovers_cleared", files=gone)

    def reload(self, config: ReceiverConfig) -> None:
        """Take over peers, limits and credentials; open connections keep their time limits, not their permission.

        Raises:
            ConfigError: the credentials cannot be used; then nothing has changed.
        """
        credentials = Credentials.of(config.tls, self.me)
        self.config = config
        self.inbox.config = config
        self.credentials = self._expiry.credentials = credentials
        self.reactor.wake(self._expiry)
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.review()

    def close(self) -> None:
        """Stop serving: what is being verified is finished, what is half-received stays for resuming."""
        self.reactor.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.stream_connection.close("stopping", f"{self.me} stops; try again later", retry=True)
        for listener in self._listeners:
            listener.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def counts(self) -> dict[str, int]:
        """All counters, and how many connections are open."""
        with self._lock:
            counts = self.counters.snapshot()
            still_open = sum(connection.stream_connection.bytes_received for connection in self._connections)
            counts["bytes_received"] = counts.get("bytes_received", 0) + still_open
            return {**counts, "connections_open": len(self._connections)}

    def admit(self, sock: socket.socket, address: str) -> None:
        """A connection came in."""
        self.counters.add("connections")
        with self._lock:
            full = len(self._connections) >= self.config.limits.max_connections
        if full:
            self.counters.add("connections_refused")
            sock.close()
            self.report(address, Refused("busy", "too many connections; raise limits.max_connections"))
            return
        try:
            connection = IncomingConnection(self, sock, address)
        except OSError:  # it is gone already
            sock.close()
            return
        with self._lock:
            self._connections.add(connection)
        self.reactor.add(connection)

    def welcome(self, connection: IncomingConnection, peer: Identity) -> None:
        """Decide whether a peer that has identified itself is admitted; raises Refused."""
        self.inbox.welcome(peer)
        most = self.config.limits.max_connections_per_peer
        with self._lock:
            count = sum(other.peer == peer.name for other in self._connections if other is not connection)
            if count >= most:
                raise Refused("busy", f"{peer.name} has {count} connections open; at most {most} are taken", retry=True)
            connection.peer = peer.name

    def ended(self, connection: IncomingConnection) -> None:
        """A connection is over."""
        with self._lock:
            self._connections.discard(connection)
            self.counters.add("bytes_received", connection.stream_connection.bytes_received)
        self.reactor.remove(connection)
        end = connection.stream_connection.closed
        if end is not None and end.code not in _ORDINARY_ENDS:
            self.counters.add("connections_refused")
            self.report(
                connection.address,
                Refused(end.code, end.message),
                node=connection.peer or connection.stream_connection.shown,
            )

    def report(self, address: str, refused: Refused, *, node: str | None = None) -> None:
        """One line for a strange connection; a flood of them is counted, not written.

        Whoever shows a certificate of the lab has a measure of its own, also a node that was removed: no stranger's
        flood hides what becomes of it, nor one such node another.
        """
        now = time.monotonic()
        with self._lock:
            quiet = self._quiet.setdefault(node, _Quiet())
            if now < quiet.until:
                quiet.unlogged += 1
                return
            quiet.until = now + _QUIET_LOG_SECONDS
            more, quiet.unlogged = quiet.unlogged, 0
        known = {} if node is None else {"node": node}
        problem = str(refused)
        self._log.warning(
            "connection_refused", address=address, **known, code=refused.code, problem=problem, not_logged_before=more
        )


@dataclass
class _Quiet:
    until: float = 0.0
    unlogged: int = 0


class Listener:
    """The actor of the listening socket."""

    def __init__(self, receiver: Receiver, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._receiver = receiver
        self._sock = sock
        self._paused_until: float | None = None
        self.port = int(sock.getsockname()[1])

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return (-1, 0) if self._paused_until is not None else (self._sock.fileno(), select.EPOLLIN)

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        return self._paused_until

    def handle(self, _: int) -> bool:
        """Accept the connections that wait; if this process has no descriptor left, try again later."""
        if self._paused_until is not None and time.monotonic() < self._paused_until:
            return False
        self._paused_until = None
        while True:
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._receiver.report("listener", Refused("resources", f"no connection can be accepted: {error}"))
                self._paused_until = time.monotonic() + _PAUSE_SECONDS
                return False
            self._receiver.admit(sock, f"{address[0]}:{address[1]}")

    def close(self) -> None:
        """Close the port."""
        self._sock.close()


class Pulse:
    """An actor that only answers, so that the watchdog can see that the threads of the reactor work."""

    deadline: float | None = None

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._answered = threading.Event()
        reactor.add(self)

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return (-1, 0)

    def handle(self, _: int) -> bool:
        """See Actor."""
        self._answered.set()
        return False

    def felt(self) -> bool:
        """Whether the reactor has answered since the last call; asks it again then."""
        answered = self._answered.is_set()
        if answered:
            self._answered.clear()
            self._reactor.wake(self)
        return answered


class IncomingConnection:
    """The actor of one connection."""

    def __init__(self, receiver: Receiver, sock: socket.socket, address: str) -> None:
        self.address = address
        self.peer: str | None = None
        self._receiver = receiver
        self._review = False
        context = None if receiver.credentials is None else receiver.credentials.listening
        self.stream_connection = StreamConnection(
            make_stream(sock, context, listening=True),
            receiver.me,
            connection_limits(receiver.config.limits),
            initiator=False,
            judge=lambda encoded: judge(receiver.credentials, encoded, listens=False),
            welcome=lambda peer: receiver.welcome(self, peer),
            offer_ended=lambda _: None,
            inbox=receiver.inbox,
            run=receiver.reactor.run,
            wake=lambda: receiver.reactor.wake(self),
        )

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return self.stream_connection.interest()

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        return self.stream_connection.deadline

    def review(self) -> None:
        """Check soon whether this peer is still welcome; from any thread."""
        self._review = True
        self._receiver.reactor.wake(self)

    def handle(self, _: int) -> bool:
        """See Actor."""
        if self._review:
            self._review = False
            self.stream_connection.review()
        more = self.stream_connection.handle(self._receiver.reactor.buffer)
        if self.stream_connection.closed is not None:
            self._receiver.ended(self)
        return more


def connection_limits(limits: Limits) -> ConnectionLimits:
    """The limits enforced on a connection, from the configuration."""
    return ConnectionLimits(
        max_header_bytes=limits.max_header_bytes,
        quiet_seconds=limits.handshake_seconds,
        idle_seconds=limits.idle_seconds,
        stall_seconds=limits.idle_seconds,
        min_bytes_per_second=limits.min_bytes_per_second,
    )
