"""The connections of the receiver: who may connect, how many there are, and over which one a peer is sent files."""

from __future__ import annotations

import socket
import threading
from typing import Final

import structlog

from fedsim.activation import passed_sockets
from fedsim.config import Address, ReceiverConfig
from fedsim.errors import FedsimError, Refused
from fedsim.inbox.counters import Counters
from fedsim.inbox.spool_inbox import SpoolInbox
from fedsim.receiver.admission import Admission
from fedsim.receiver.incoming_connection import IncomingConnection
from fedsim.receiver.listening import Listener, listen
from fedsim.receiver.queue_watch import QueueWatch
from fedsim.receiver.relays import ModelRelays
from fedsim.refusal_log import RefusalLog
from fedsim.spool.files import Role
from fedsim.spool.layout import Spool
from fedsim.spool.peer_queue import PeerQueue
from fedsim.wire import Identity
from fedsim.wire.client.queue_delivery import QueueDelivery
from fedsim.wire.tls import Credentials
from fedsim.wire.transport.expiry import ExpiryWatch
from fedsim.wire.transport.reactor import Reactor

# Ordinary ends of a connection, which are not logged.
_ORDINARY_ENDS: Final = frozenset({"closed", "lost", "idle", "stopping"})


class Receiver:
    """Listens, and serves every connection on `limits.threads` threads."""

    def __init__(self, config: ReceiverConfig) -> None:
        self.counters = Counters()
        self.spool = Spool(config.spool)
        self.config = config
        self.inbox = SpoolInbox(config, self.spool, self.counters)
        self.me = Identity(config.name, Role(config.role))
        self.reactor = Reactor("receiver", config.limits.threads)
        self.credentials: Credentials | None = None
        self._relays = ModelRelays(
            self.me,
            lambda: self.credentials,
            self.counters,
            plaintext=lambda: self.config.insecure_plaintext,
        )
        self.inbox.relays = self._relays
        self.inbox.forwarded.wake = lambda: self.reactor.wake(self.inbox.forwarded)
        self._expiry = ExpiryWatch(None)
        self._connections: set[IncomingConnection] = set()
        self.admission = Admission(
            lambda: self.config.limits.max_pending_connections, lambda: self.reactor.wake(self.admission)
        )
        # The connection over which each peer that listens on no port is sent its files.
        self._serving: dict[str, IncomingConnection] = {}
        self._queues: QueueWatch | None = None
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._log = structlog.get_logger()
        self._refusals = RefusalLog()

    def start(self) -> None:
        """Open the spool, listen and serve; `Unavailable` if another process has the port or the spool."""
        config = self.config
        self.spool.open()
        self.credentials = self._expiry.credentials = Credentials.of(config.tls, self.me)
        plain = config.tls is None and not config.insecure_plaintext
        self.inbox.open()
        try:
            self._queues = QueueWatch(self._serving)
            sockets = passed_sockets(config.listen, plain=plain) or [listen(config.listen)]
        except FedsimError:
            self._release()
            raise
        self._listeners = [Listener(sock, self.accepted, self._refusals) for sock in sockets]
        self.reactor.start()
        self.reactor.add(self.admission)
        for listener in self._listeners:
            self.reactor.add(listener)
        self.reactor.add(self._expiry)
        self.reactor.add(self._queues)
        self.reactor.add(self.inbox.forwarded)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listeners[0].port if self._listeners else 0

    def reload(self, config: ReceiverConfig) -> None:
        """Apply peers, limits and credentials; open connections keep their time limits, not their permission.

        Raises:
            ConfigError: the credentials cannot be used; then nothing has changed.
        """
        credentials = Credentials.of(config.tls, self.me)
        self.config = config
        self.inbox.config = config
        self.credentials = self._expiry.credentials = credentials
        self.reactor.wake(self._expiry)
        self._relays.reload()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.review()

    def close(self) -> None:
        """Stop serving: files being verified are finished, partly received ones are kept for resuming."""
        self.reactor.close()
        self._relays.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close("stopping", f"{self.me} stops; try again later")
        self.admission.close()
        for listener in self._listeners:
            listener.close()
        self._release()

    def _release(self) -> None:
        if self._queues is not None:
            self._queues.close()
        self.inbox.close()

    def counts(self) -> dict[str, int]:
        """All counters, and how many connections are open."""
        with self._lock:
            counts = self.counters.snapshot()
            still_open = sum(connection.stream_connection.bytes_received for connection in self._connections)
            counts["bytes_received"] = counts.get("bytes_received", 0) + still_open
            return {**counts, "connections_open": len(self._connections)}

    def accepted(self, sock: socket.socket, address: Address) -> None:
        """Serve a new connection, as soon as those that have not identified themselves leave time for it."""
        self.counters.add("connections")
        self.admission.add(IncomingConnection(self, sock, address))

    def begun(self, connection: IncomingConnection) -> None:
        """A connection is served from now on."""
        with self._lock:
            self._connections.add(connection)
        self.reactor.add(connection)

    def replaced(self, address: str) -> None:
        """A connection was closed before it was served, because another one came."""
        self.counters.add("connections_refused")
        problem = "too many connections wait whose other side has not identified itself"
        self._refusals.warning(None, "connection_refused", address=address, code="busy", problem=problem)

    def welcome(self, connection: IncomingConnection, peer: Identity) -> None:
        """Decide whether a peer that has identified itself is admitted; raises Refused."""
        self.inbox.welcome(peer)
        limits = self.config.limits
        most = limits.max_connections_per_peer
        with self._lock:
            if len(self._connections) - len(self.admission) >= limits.max_connections:
                raise Refused("busy", "too many connections; raise limits.max_connections", retry=True)
            count = sum(other.peer == peer.name for other in self._connections if other is not connection)
            if count >= most:
                raise Refused(
                    "busy", f"{peer.name} has {count} connections open; at most {most} are accepted", retry=True
                )
            connection.peer = peer.name
        self.admission.discard(connection)

    def serve(self, connection: IncomingConnection, peer: str) -> QueueDelivery:
        """Send a peer its files over this connection; an older one, most likely dead, is closed."""
        with self._lock:
            older = self._serving.get(peer)
            self._serving[peer] = connection
        if older is not None:
            older.post(lambda: older.close("superseded", "this peer opened a newer connection"))
        queue = PeerQueue(self.spool.root, peer)
        if self._queues is not None:
            self._queues.add(queue)  # before the first scan
        return QueueDelivery(
            self.spool,
            queue,
            run=self.reactor.run,
            post=connection.post,
            on_sent=lambda: self.counters.add("files_sent"),
        )

    def ended(self, connection: IncomingConnection) -> None:
        """A connection has ended."""
        with self._lock:
            self._connections.discard(connection)
            if self._serving.get(connection.peer or "") is connection:
                del self._serving[connection.peer or ""]
            self.counters.add("bytes_received", connection.stream_connection.bytes_received)
        self.admission.discard(connection)
        self.reactor.remove(connection)
        end = connection.stream_connection.closed
        if end is not None and end.code not in _ORDINARY_ENDS:
            self.counters.add("connections_refused")
            # Each peer with a certificate of the lab, even one that was removed, has a rate of its own.
            node = connection.peer or connection.stream_connection.shown
            known = {} if node is None else {"node": node}
            self._refusals.warning(
                node,
                "connection_refused",
                address=connection.address,
                **known,
                code=end.code,
                problem=end.message,
            )
