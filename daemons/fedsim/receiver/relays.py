"""Passes global models on to the node that the server has named, while they arrive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from fedsim.config.fields import is_loopback
from fedsim.forwarding import Forwarding, Successor
from fedsim.inbox.counters import Counters
from fedsim.spool.files import FileHeader, FileId
from fedsim.wire import Identity, Peer
from fedsim.wire.growing_body import GrowingBody
from fedsim.wire.sender import Outcome, Sender, Status, Transfer
from fedsim.wire.tls import Credentials


class ModelRelay:
    """One model on its way to one node; its methods may be called from any thread."""

    def __init__(self, sender: Sender, peer: Peer, header: FileHeader, body: GrowingBody) -> None:
        self.peer = peer
        self.header = header
        self.body = body
        self.transfer: Transfer | None = None
        self._sender = sender

    def grown(self, received: int) -> None:
        """The first `received` bytes of it are there."""
        self.body.received = received
        self._sender.body_grew(self.peer)

    def cancel(self) -> None:
        """What arrived was not what was announced."""
        if self.transfer is not None:
            self.transfer.cancel()


class ModelRelays:
    """The models that this node passes on. Its threads start with the first of them.

    Args:
        me: the identity of this node.
        credentials: returns those of the receiver at present.
        counters: of the receiver.
        plaintext: returns whether unencrypted connections beyond this machine are allowed at present.
    """

    def __init__(
        self,
        me: Identity,
        credentials: Callable[[], Credentials | None],
        counters: Counters,
        *,
        plaintext: Callable[[], bool],
    ) -> None:
        self._me = me
        self._plaintext = plaintext
        self._credentials = credentials
        self._counters = counters
        self._lock = threading.Lock()
        self._sender: Sender | None = None
        self._peers: set[Peer] = set()
        self._relays: dict[FileId, ModelRelay] = {}
        self._log = structlog.get_logger()

    def begin(self, header: FileHeader, path: Path, received: int, forwarding: Forwarding) -> ModelRelay | None:
        """Begin, or continue, to pass on the file at `path`, of which the first `received` bytes are there.

        None if this node is the last of its chain, or may not connect to the next one. A file whose connection broke,
        or that the server sends to its end, is the same file: it goes on.
        """
        if (successor := forwarding.successor) is None:
            return None
        if self._credentials() is None and not (self._plaintext() or is_loopback(successor.address)):
            problem = f"{successor.address} is not on loopback: configure `tls:`, or set `insecure_plaintext: true`"
            self._log.warning("model_not_passed_on", node=successor.node, code="tls", problem=problem)
            return None
        peer = _peer(successor)
        with self._lock:
            known = self._relays.get(header.id)
            if known is not None and (known.peer, known.header) == (peer, header):
                relay = known
            else:
                relay = self._start(header, path, received, peer, forwarding.seconds)
        if known is not None and known is not relay:
            known.cancel()
        relay.grown(received)
        return relay

    def _start(self, header: FileHeader, path: Path, received: int, peer: Peer, seconds: float) -> ModelRelay:
        if self._sender is None:
            self._sender = Sender(self._me, credentials=self._credentials(), announced=True).open()
        self._peers.add(peer)
        relay = self._relays[header.id] = ModelRelay(
            self._sender, peer, header, GrowingBody(path, header.size, received)
        )
        relay.transfer = self._sender.send(
            peer,
            header.id,
            relay.body,
            digest=header.digest,
            give_up_after=seconds,
            on_done=lambda outcome: self._ended(relay, outcome),
        )
        return relay

    def _ended(self, relay: ModelRelay, outcome: Outcome) -> None:
        with self._lock:
            if self._relays.get(relay.header.id) is relay:
                del self._relays[relay.header.id]
        if outcome.status is Status.CANCELLED:
            return
        fields = {"node": relay.peer.name, "task_uid": relay.header.id.task, "round": relay.header.id.round}
        if outcome.delivered:
            self._counters.add("models_passed_on")
            self._log.info("model_passed_on", **fields, bytes=outcome.bytes_sent, seconds=round(outcome.seconds, 3))
        else:
            self._log.warning("model_not_passed_on", **fields, code=outcome.code, problem=outcome.message)

    def reload(self) -> None:
        """Connect with the receiver's new credentials from now on."""
        with self._lock:
            sender, peers = self._sender, set(self._peers)
        if sender is not None:
            sender.reload(self._credentials(), peers)

    def close(self) -> None:
        """Stop; what is under way ends."""
        with self._lock:
            sender = self._sender
        if sender is not None:
            sender.close()


def _peer(successor: Successor) -> Peer:
    return Peer(successor.node, successor.address, successor.port)
