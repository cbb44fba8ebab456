"""Nodes that speak the protocol and train nothing, all in one process: many of them cost little.

Each keeps a connection to the server's receiver open, as a node that does not listen: it announces itself, accepts its
assignment, reports that it is ready, and answers each global model with an update of the same size, which is a prepared
file. What it receives is counted and dropped.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedsim.client.announcing import make_hello
from fedsim.config import ClientConfig
from fedsim.data import inspect_dataset
from fedsim.learning.partitions import make_partitioner
from fedsim.messages import Assignment, Broadcast, Hello, TaskReport, read_message
from fedsim.spool.files import FileHeader, FileId, Kind, Role
from fedsim.spool.updates import file_id
from fedsim.update import TRAIN_LOSS, Update
from fedsim.wire.client.peer_connection import PeerConnection
from fedsim.wire.client.transfer import Outcome, Transfer
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.transport.reactor import Reactor
from fedsim.worker.host_jobs import do
from fedsim.worker.inspector import Inspected
from fedsim.worker.jobs import HostInspected, InspectHost

THREADS = 4
LIMITS = ConnectionLimits(
    max_header_bytes=64 << 10, quiet_seconds=60.0, idle_seconds=3600.0, stall_seconds=300.0, min_bytes_per_second=0
)


@dataclass(frozen=True)
class PreparedUpdate:
    """The file that every node sends as its update."""

    path: Path
    digest: str


class LoadedNode:
    """One node: its announcement, its task, its connection. The methods are called by threads of the reactor."""

    def __init__(self, reactor: Reactor, hello: Hello, server: Peer, update: PreparedUpdate) -> None:
        self._hello = hello
        self._update = update
        self._assignment: Assignment | None = None
        self.received = 0
        self._connection = PeerConnection(
            reactor,
            Identity(hello.node, Role.CLIENT),
            server,
            LIMITS,
            credentials=None,
            inbox=self,
            on_trouble=lambda _peer, _trouble: None,
        )
        reactor.add(self._connection)
        self._announce()

    def offer(self, _sender: Identity, header: FileHeader) -> DroppedFile:
        """Accept everything; see `Inbox`."""
        return DroppedFile(self, header)

    def arrived(self, header: FileHeader, body: bytes) -> None:
        """Answer a complete file."""
        match header.id.kind:
            case Kind.INITPARAM:
                self._assignment = read_message(Assignment, body, "initparam")
                self._announce(self._ready(self._assignment))
            case Kind.GLOBALPARAM:
                self._answer(header)
            case Kind.STOP:
                self._announce()

    def close(self) -> None:
        """End the connection; after the reactor has ended."""
        self._connection.close()

    def _ready(self, assignment: Assignment) -> TaskReport:
        settings, clients = assignment.settings, assignment.num_clients
        num_train = next(one.num_train for one in self._hello.datasets if one.name == settings.dataset)
        size = make_partitioner(settings).size(num_train, settings.num_clients)
        return TaskReport(task=assignment.task, state="ready", round=0, num_examples=((clients, size or 1),))

    def _answer(self, header: FileHeader) -> None:
        broadcast = read_message(Broadcast, header.meta, "globalparam")
        if broadcast.final or self._assignment is None or header.id.round is None:
            self._announce()
            return
        for chunk in broadcast.chunks:
            update = Update(
                base_round=header.id.round,
                chunk=chunk.id,
                num_clients=len(chunk.clients),
                num_examples=self._ready(self._assignment).num_examples[0][1] * len(chunk.clients),
                metrics={TRAIN_LOSS: 1.0},
                digest=self._update.digest,
                size=self._update.path.stat().st_size,
                base_digest=header.digest,
            )
            meta = update.model_dump(mode="json", exclude_defaults=True)
            self._send(file_id(update, self._assignment.task), self._update.path, meta, self._update.digest)

    def _announce(self, *reports: TaskReport) -> None:
        hello = self._hello.model_copy(update={"tasks": reports})
        self._send(FileId(kind=Kind.HELLO), hello.model_dump_json().encode(), {}, None)

    def _send(self, file: FileId, source: Path | bytes, meta: dict[str, Any], digest: str | None) -> None:
        cancel = self._connection.cancel
        self._connection.submit(Transfer(cancel, file, source, meta, digest, None, _ignore))


def _ignore(_: Outcome) -> None:
    """Nothing depends on the end of a transfer: what is refused or lost is missing in the round."""


class DroppedFile:
    """A file being received, of which only messages are kept; see `Incoming`."""

    def __init__(self, node: LoadedNode, header: FileHeader) -> None:
        self._node = node
        self._header = header
        self._body = bytearray()
        self.have = 0

    def write(self, data: memoryview) -> None:
        """Count the bytes."""
        self.have += len(data)
        if self._header.id.kind is not Kind.GLOBALPARAM:
            self._body += data

    def finish(self) -> None:
        """Let the node answer."""
        self._node.received += self.have
        self._node.arrived(self._header, bytes(self._body))

    def abandon(self, *, keep: bool) -> None:
        """Nothing is kept."""


class LoadGenerator:
    """Nodes with these names that hold the same data; as a context manager it connects and ends them.

    Args:
        config: what the first of them would have as its client.yml.
        names: of all nodes.
        server: its receiver.
        update: what they send.
    """

    def __init__(self, config: ClientConfig, names: list[str], server: Peer, update: PreparedUpdate) -> None:
        host = do(InspectHost(device="cpu"))
        assert isinstance(host, HostInspected)
        found = tuple(inspect_dataset(dataset, config.data, None) for dataset in config.datasets)
        seen = Inspected(found, device=host.device, processor=host.processor, torch=host.torch)
        self._hello = make_hello(config, seen, (), ())
        self._names = names
        self._server = server
        self._update = update
        self._reactor = Reactor("load", THREADS)
        self.nodes: list[LoadedNode] = []

    def __enter__(self) -> Self:
        self._reactor.start()
        for name in self._names:
            known = {"node": name, "instance": secrets.token_hex(16), "start": 1, "session": secrets.token_hex(16)}
            hello = self._hello.model_copy(update=known)
            self.nodes.append(LoadedNode(self._reactor, hello, self._server, self._update))
        return self

    def __exit__(self, *_: object) -> None:
        self._reactor.close()
        for node in self.nodes:
            node.close()
