"""A file that is sent while it arrives, and an offer that is answered later, by the protocol without sockets."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from fedsim.spool.files import FileHeader, FileId, Kind, Role
from fedsim.wire import Identity
from fedsim.wire.growing_body import GrowingBody
from fedsim.wire.protocol.connection import ProtocolConnection
from fedsim.wire.protocol.events import BodyReceived, ConnectionEvent, FileOffered, HelloReceived, OfferCancelled
from fedsim.wire.protocol.frames import PIECE_BYTES
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.protocol.outgoing import BodyRange, Outgoing
from fedsim.wire.transport.expected import ExpectedFile

CONTENT = bytes(range(256)) * 12_000
LIMITS = ConnectionLimits(
    max_header_bytes=4096, quiet_seconds=10, idle_seconds=900, stall_seconds=60, min_bytes_per_second=1000
)
HEADER = FileHeader(
    id=FileId(kind=Kind.GLOBALPARAM, task="7" * 32, round=1), size=len(CONTENT), digest=blake3(CONTENT).hexdigest()
)


class Both:
    """A server that sends to a node; what the node receives."""

    def __init__(self) -> None:
        self.server = ProtocolConnection(Identity("server", Role.SERVER), LIMITS, initiator=True, now=0.0)
        self.node = ProtocolConnection(Identity("node", Role.CLIENT), LIMITS, initiator=False, now=0.0)
        self.events: list[ConnectionEvent] = []
        self.received = b""
        self.server.start()
        self.exchange()

    def exchange(self) -> None:
        """Carry bytes both ways until there are none."""
        while self._carry(self.server, self.node) | self._carry(self.node, self.server):
            pass

    def _carry(self, source: ProtocolConnection, target: ProtocolConnection) -> bool:
        carried = False
        while (output := source.next_output()) is not None:
            data = (
                CONTENT[output.offset : output.offset + output.count]
                if isinstance(output, BodyRange)
                else bytes(output.data)
            )
            source.sent(len(data))
            carried = True
            for event in target.receive(memoryview(data), 0.0):
                if isinstance(event, HelloReceived):
                    target.accept()
                elif isinstance(event, BodyReceived):
                    self.received += bytes(event.data)
                else:
                    self.events.append(event)
        return carried


def test_only_bytes_that_exist_are_put_into_frames() -> None:
    available = 0
    both = Both()
    both.server.offer(Outgoing(HEADER, b"", lambda: available))
    both.exchange()
    (offered,) = both.events
    assert isinstance(offered, FileOffered)
    both.node.answer(offered.transfer, 0)
    both.exchange()
    assert both.received == b""
    assert not both.server.busy, "no frame has begun, so that the socket is not waited for"
    for available in (1000, 1001, 2 * PIECE_BYTES, len(CONTENT)):
        both.exchange()
        assert both.received == CONTENT[:available]
    assert both.server.closed is None


def test_the_cancellation_of_an_offer_that_was_not_answered_is_reported_once() -> None:
    both = Both()
    outgoing = Outgoing(HEADER, CONTENT)
    both.server.offer(outgoing)
    both.exchange()
    both.server.cancel(outgoing)
    both.exchange()
    assert [type(event) for event in both.events] == [FileOffered, OfferCancelled]


def test_an_offer_can_be_answered_when_a_while_has_passed() -> None:
    both = Both()
    both.server.offer(Outgoing(HEADER, CONTENT))
    both.exchange()
    both.node.check_time(300.0)
    both.node.answer_stored(1)
    both.exchange()
    assert both.server.closed is both.node.closed is None


def test_a_growing_body_has_its_final_size_and_is_damaged_only_if_it_loses_bytes(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"12345")
    body = GrowingBody(path, 100, 5)
    assert (body.size, body.shrunk) == (100, False)
    assert body.available() == 5
    with path.open("ab") as file:
        file.write(b"678")
    body.received = 8
    assert (body.available(), body.shrunk) == (8, False)
    path.rename(tmp_path / "final")
    assert not body.shrunk
    (tmp_path / "final").write_bytes(b"1")
    assert body.shrunk
    body.close()


@pytest.mark.parametrize("early", [True, False])
def test_an_expected_file_reports_its_end_once_whoever_comes_first(early: bool) -> None:
    reported: list[int] = []
    expected = ExpectedFile(lambda: None, lambda: None)
    if early:
        expected.settle()
    expected.when_settled(lambda: reported.append(1))
    expected.settle()
    expected.settle()
    assert reported == [1]
