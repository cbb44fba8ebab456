"""The sockets of the receiver: who may connect, how many connections there are, and what each one does."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from typing import Final

import structlog

from fedsim.activation import passed_sockets
from fedsim.config import ReceiverConfig
from fedsim.errors import FedsimError, Refused, Unavailable
from fedsim.receiver.counters import Counters
from fedsim.receiver.inbox import SpoolInbox
from fedsim.receiver.incoming_connection import IncomingConnection
from fedsim.receiver.listening import Listener, listen
from fedsim.receiver.refusal_log import RefusalLog
from fedsim.spool.clear import clear_leftovers
from fedsim.spool.files import Role
from fedsim.spool.layout import Spool
from fedsim.wire import Identity
from fedsim.wire.tls import Credentials
from fedsim.wire.transport.expiry import ExpiryWatch
from fedsim.wire.transport.reactor import Reactor

# What an ordinary peer does; only others are worth a line.
_ORDINARY_ENDS: Final = frozenset({"closed", "lost", "idle", "stopping"})


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
        self._refusals = RefusalLog()

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
        self._listeners = [Listener(sock, self.admit, self._refusals) for sock in sockets]
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
            self._refusals.report(address, Refused("busy", "too many connections; raise limits.max_connections"))
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
            self._refusals.report(
                connection.address,
                Refused(end.code, end.message),
                node=connection.peer or connection.stream_connection.shown,
            )
