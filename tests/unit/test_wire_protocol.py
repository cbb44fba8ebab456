"""The protocol without sockets and clocks: two connections in memory, and a time that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from fedsim.errors import Refused
from fedsim.spool.files import FileHeader, FileId, Kind, Role
from fedsim.spool.npy import write_vector
from fedsim.spool.peer_queue import PeerQueue, QueuedFile, read_entry
from fedsim.wire import Identity
from fedsim.wire.protocol.connection import ProtocolConnection
from fedsim.wire.protocol.events import BodyReceived, FileOffered, HelloReceived, OfferEnded
from fedsim.wire.protocol.frames import INLINE_BYTES, MAGIC, FrameType, Refusal, encode
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.protocol.outgoing import BodyRange, Outgoing

TASK = "7" * 32
LIMITS = ConnectionLimits(
    max_header_bytes=4096, quiet_seconds=10, idle_seconds=900, stall_seconds=60, min_bytes_per_second=1000
)


class End:
    """One end of a connection. It accepts everything, and acknowledges a file as soon as it is complete."""

    def __init__(self, name: str, role: Role, *, initiator: bool, now: float = 0.0) -> None:
        self.connection = ProtocolConnection(Identity(name, role), LIMITS, initiator=initiator, now=now)
        self.received: dict[FileId, bytes] = {}
        self.ended: list[OfferEnded] = []
        self.on_hello: Callable[[Identity], None] = lambda _: None
        self._partial: dict[int, tuple[FileId, bytearray]] = {}

    def offer(self, file_id: FileId, content: bytes) -> None:
        header = FileHeader(id=file_id, size=len(content), digest=blake3(content).hexdigest())
        self.connection.offer(Outgoing(header, content))

    def output(self) -> bytes:
        sent = bytearray()
        while (output := self.connection.next_output()) is not None:
            if isinstance(output, BodyRange):
                body = output.outgoing.body
                assert isinstance(body, bytes)
                data = body[output.offset : output.offset + output.count]
            else:
                data = bytes(output.data)
            sent += data
            self.connection.sent(len(data))
        return bytes(sent)

    def receive(self, data: bytes, now: float) -> None:
        for event in self.connection.receive(memoryview(data), now):
            match event:
                case HelloReceived(identity):
                    self.connection.accept()
                    self.on_hello(identity)
                case FileOffered(transfer, header, inline):
                    self._partial[transfer] = (header.id, bytearray(inline or b""))
                    if self.connection.answer(transfer, 0):
                        self._complete(transfer, now)
                case BodyReceived(transfer, piece, complete):
                    self._partial[transfer][1].extend(piece)
                    if complete:
                        self._complete(transfer, now)
                case OfferEnded():
                    self.ended.append(event)
        self.connection.check_time(now)

    def _complete(self, transfer: int, now: float) -> None:
        file_id, content = self._partial.pop(transfer)
        self.received[file_id] = bytes(content)
        self.connection.acknowledge(transfer, now)


def exchange(one: End, other: End, now: float = 0.0) -> None:
    """Carry bytes until both are silent."""
    while True:
        to_other, to_one = one.output(), other.output()
        if not to_other and not to_one:
            return
        other.receive(to_other, now)
        one.receive(to_one, now)


def connected(now: float = 0.0) -> tuple[End, End]:
    node, server = End("node-1", Role.CLIENT, initiator=True), End("server", Role.SERVER, initiator=False)
    node.connection.start()
    server.connection.start()
    exchange(node, server, now)
    assert node.connection.peer == Identity("server", Role.SERVER)
    assert server.connection.peer == Identity("node-1", Role.CLIENT)
    return node, server


def local_id(chunk: int = 0) -> FileId:
    return FileId(kind=Kind.LOCALPARAM, task=TASK, round=1, chunk=chunk)


def code_at(end: End, now: float) -> str:
    """The code with which the connection ends at this time; empty if it does not."""
    try:
        end.connection.check_time(now)
    except Refused as refused:
        return refused.code
    return ""


def ends_exactly_at(end: End, when: float) -> str:
    assert end.connection.deadline == pytest.approx(when)
    assert code_at(end, when - 0.001) == ""
    return code_at(end, when)


@pytest.mark.parametrize("sent", [b"", MAGIC + b"\x01"])
def test_a_handshake_that_does_not_come_in_time_ends_the_connection(sent: bytes) -> None:
    end = End("server", Role.SERVER, initiator=False, now=100.0)
    end.receive(sent, 105.0)
    assert ends_exactly_at(end, 110.0) == "too_slow"


def test_a_header_that_does_not_come_in_time_ends_the_connection() -> None:
    _, server = connected()
    server.receive(encode(FrameType.PING)[:5], 20.0)
    server.receive(encode(FrameType.PING)[5:6], 28.0)
    assert ends_exactly_at(server, 30.0) == "too_slow"


def test_a_connection_without_transfers_ends_when_it_was_idle() -> None:
    node, server = connected(5.0)
    assert ends_exactly_at(server, 905.0) == "idle"
    assert ends_exactly_at(node, 905.0) == "idle"


def test_a_body_that_comes_below_the_minimum_rate_ends_the_connection() -> None:
    node, server = connected()
    node.offer(local_id(), b"x" * (2 * INLINE_BYTES))
    server.receive(node.output(), 0.0)
    node.receive(server.output(), 0.0)
    body = node.output()
    server.receive(body[:8028], 8.0)  # 8000 bytes in 8 seconds: exactly at the minimum
    assert ends_exactly_at(server, 18.0) == "too_slow"


def test_an_answer_that_does_not_come_is_asked_for_once_and_then_ends_the_connection() -> None:
    node, _ = connected()
    node.offer(local_id(), b"x")
    node.output()
    node.connection.check_time(1.0)
    assert node.connection.deadline == pytest.approx(31.0)
    node.connection.check_time(31.0)
    assert node.output() == encode(FrameType.PING)
    assert ends_exactly_at(node, 61.0) == "lost"


def test_a_file_that_is_being_verified_does_not_count_as_idle() -> None:
    node, server = connected()
    node.offer(local_id(), b"x")
    data = memoryview(node.output())
    (event,) = server.connection.receive(data, 1.0)
    assert isinstance(event, FileOffered)
    assert server.connection.answer(event.transfer, 0)
    assert code_at(server, 10_000.0) == ""
    assert server.connection.deadline is None
    server.connection.acknowledge(event.transfer, 10_000.0)
    server.output()
    assert code_at(server, 10_000.0) == ""
    assert ends_exactly_at(server, 10_900.0) == "idle"


def test_the_reason_for_the_end_is_sent() -> None:
    node, server = connected()
    server.connection.close(Refusal(code="stopping", message="it stops", retry=True))
    node.receive(server.output(), 1.0)
    assert node.connection.closed is not None
    assert node.connection.closed.code == "stopping"


def test_small_files_overtake_large_ones_and_all_arrive() -> None:
    node, server = connected()
    files = {local_id(chunk): bytes([chunk]) * (3 * INLINE_BYTES + chunk) for chunk in range(10)}
    files |= {FileId(kind=Kind.STOP, task=f"{number:032x}"): b"{}" for number in range(100)}
    for file_id, content in files.items():
        node.offer(file_id, content)
    exchange(node, server)
    assert server.received == files
    assert len(node.ended) == len(files)
    kinds = [end.outgoing.header.id.kind for end in node.ended]
    assert Kind.LOCALPARAM not in kinds[:60], "no body was sent before the small files"


def send_queue(end: End, queue: PeerQueue) -> dict[FileId, Path]:
    """Offer everything that is queued for the peer at the other end."""
    entries = {}
    for entry in queue.entries():
        file = read_entry(entry)
        assert file is not None
        end.offer(file.id, file.source if isinstance(file.source, bytes) else file.source.read_bytes())
        entries[file.id] = entry
    return entries


def settle(end: End, entries: dict[FileId, Path]) -> None:
    """Remove from the queue what was delivered."""
    for ended in end.ended:
        assert ended.refused is None
        entries.pop(ended.outgoing.header.id).unlink()
    end.ended.clear()


def test_a_round_with_a_node_that_listens_on_no_port(tmp_path: Path) -> None:
    """The node connects to the server; what the server has queued for it comes over that connection."""
    to_node, to_server = PeerQueue(tmp_path / "server", "node-1"), PeerQueue(tmp_path / "node", "server")
    model = tmp_path / "model.npy"
    write_vector(model, np.arange(100_000, dtype=np.float32))
    assignment, broadcast = FileId(kind=Kind.INITPARAM, task=TASK), FileId(kind=Kind.GLOBALPARAM, task=TASK, round=1)
    to_node.put(QueuedFile(id=assignment, content='{"task": "…"}'))
    to_node.put(QueuedFile(id=broadcast, path=model, meta={"final": False}))
    to_server.put(QueuedFile(id=FileId(kind=Kind.HELLO), content="{}"))

    # Another process holds the connection than the one that queued: it finds the files in the peer's folder.
    node, server = End("node-1", Role.CLIENT, initiator=True), End("server", Role.SERVER, initiator=False)
    sent: dict[str, dict[FileId, Path]] = {}
    server.on_hello = lambda peer: sent.update(server=send_queue(server, PeerQueue(tmp_path / "server", peer.name)))
    node.on_hello = lambda peer: sent.update(node=send_queue(node, PeerQueue(tmp_path / "node", peer.name)))
    node.connection.start()
    exchange(node, server)
    assert node.received == {assignment: '{"task": "…"}'.encode(), broadcast: model.read_bytes()}
    assert list(server.received) == [FileId(kind=Kind.HELLO)]
    settle(server, sent["server"])
    settle(node, sent["node"])
    assert to_node.entries() == to_server.entries() == []

    # The node trains and answers on the connection that it opened; then the server sends the next round on it.
    update = tmp_path / "update.npy"
    write_vector(update, np.ones(100_000, np.float32))
    to_server.put(QueuedFile(id=local_id(), path=update))
    entries = send_queue(node, to_server)
    exchange(node, server)
    settle(node, entries)
    assert server.received[local_id()] == update.read_bytes()
    to_node.put(QueuedFile(id=FileId(kind=Kind.STOP, task=TASK), content="{}"))
    entries = send_queue(server, to_node)
    exchange(node, server)
    settle(server, entries)
    assert node.received[FileId(kind=Kind.STOP, task=TASK)] == b"{}"


def test_what_was_not_delivered_stays_queued(tmp_path: Path) -> None:
    queue = PeerQueue(tmp_path, "node-1")
    queue.put(QueuedFile(id=FileId(kind=Kind.STOP, task=TASK), content="{}"))
    _, server = connected()
    send_queue(server, queue)
    server.output()  # and the connection breaks
    assert [file.id.kind for entry in queue.entries() if (file := read_entry(entry))] == [Kind.STOP]
