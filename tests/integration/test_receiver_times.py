from __future__ import annotations

import itertools
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import structlog
from transfer_support import (
    OTHER,
    PATIENCE,
    SERVER,
    RawPeer,
    global_id,
    header_of,
    node_config,
    peer_of,
    receiving,
    send_now,
    stop_body,
    stop_id,
    vector_bytes,
)

from fedsim.inbox.incoming_file import IncomingFile
from fedsim.spool.files import Kind
from fedsim.wire.protocol.frames import MAGIC, FrameType, encode
from fedsim.wire.sender import Sender


@pytest.mark.parametrize("sent", [b"", MAGIC, MAGIC + b"\x01\x01" + b"\0" * 10])
def test_a_handshake_that_does_not_come_ends_the_connection(tmp_path: Path, sent: bytes) -> None:
    with (
        receiving(node_config(tmp_path, limits={"handshake_seconds": 0.1})) as receiver,
        RawPeer(receiver.port, hello=False) as peer,
    ):
        peer.send(sent)
        peer.expect_end("too_slow")
    assert receiver.counts()["connections_refused"] == 1


def test_a_header_that_trickles_ends_the_connection(tmp_path: Path) -> None:
    with (
        receiving(node_config(tmp_path, limits={"handshake_seconds": 0.1})) as receiver,
        RawPeer(receiver.port) as peer,
    ):
        peer.expect(FrameType.HELLO)
        frame = encode(FrameType.OFFER, header_of(stop_body(), stop_id()), transfer=1, body_size=len(stop_body()))
        peer.send(frame[:40])
        peer.expect_end("too_slow")


def test_a_body_that_trickles_ends_the_connection_and_stays_for_resuming(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, 50_000)
    limits = {"handshake_seconds": 0.2, "min_bytes_per_second": 100_000}
    with receiving(node_config(tmp_path, limits=limits)) as receiver:
        with RawPeer(receiver.port) as peer:
            peer.expect(FrameType.HELLO)
            peer.offer(header_of(body))
            peer.expect(FrameType.ANSWER)
            peer.data(0, body[:1000])
            peer.expect_end("too_slow")
        with RawPeer(receiver.port) as peer:
            peer.expect(FrameType.HELLO)
            peer.offer(header_of(body))
            assert peer.expect(FrameType.ANSWER)["have"] == 1000
            peer.data(1000, body[1000:])
            assert peer.expect(FrameType.ACK) == {}


def code_at_the_end(tmp_path: Path, turn: Callable[[RawPeer, int], None]) -> str:
    """Take turns, each of which is answered, until a receiver has had enough of them; what it calls that."""
    limits = {"handshake_seconds": 0.3, "min_bytes_per_second": 1}
    with (
        structlog.testing.capture_logs() as logs,
        receiving(node_config(tmp_path, limits=limits)) as receiver,
        RawPeer(receiver.port) as peer,
        suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        deadline = time.monotonic() + PATIENCE
        for number in itertools.count(1):
            assert time.monotonic() < deadline, "this goes on for ever"
            turn(peer, number)
            peer.receive()
    (code,) = [str(log["code"]) for log in logs if log["event"] == "connection_refused"]
    return code


def test_neither_pings_nor_offers_buy_time_for_a_body_that_does_not_come(tmp_path: Path) -> None:
    header = header_of(vector_bytes(tmp_path, 50_000))

    def turn(peer: RawPeer, number: int) -> None:
        if number % 2:
            peer.offer(header.model_copy(update={"id": global_id(number)}), transfer=number)
        else:
            peer.send(encode(FrameType.PING))

    assert code_at_the_end(tmp_path, turn) == "too_slow"


def test_offering_and_cancelling_for_ever_ends_the_connection(tmp_path: Path) -> None:
    header = header_of(vector_bytes(tmp_path, 50_000))

    def turn(peer: RawPeer, number: int) -> None:
        peer.offer(header, transfer=number)
        if number > 1:
            peer.send(encode(FrameType.CANCEL, transfer=number - 1))

    assert code_at_the_end(tmp_path, turn) == "too_slow"


def test_a_connection_on_which_nothing_happens_is_ended_politely(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path, limits={"idle_seconds": 0.1})) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        peer.expect_end("idle")
        assert "connections_refused" not in receiver.counts()


def test_a_sender_whose_idle_connection_was_ended_makes_a_new_one(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path, limits={"idle_seconds": 0.05})) as receiver, Sender(SERVER) as sender:
        for number in range(3):
            task = f"{number:032x}"
            outcome = sender.send_and_wait(peer_of(receiver), stop_id(task), stop_body(task), give_up_after=PATIENCE)
            assert outcome.delivered
            with RawPeer(receiver.port) as later:  # when this one has been ended, so has the sender's
                later.expect(FrameType.HELLO)
                later.expect_end("idle")


def test_hundreds_of_idle_connections_occupy_no_thread(tmp_path: Path) -> None:
    limits = {"max_connections": 300, "max_connections_per_peer": 300, "threads": 3}
    before = threading.active_count()
    with receiving(node_config(tmp_path, limits=limits)) as receiver:
        peers = [RawPeer(receiver.port) for _ in range(200)]
        for peer in peers:
            peer.expect(FrameType.HELLO)
        assert threading.active_count() - before == 3
        process = psutil.Process()
        used = sum(process.cpu_times()[:2])
        readable, _, _ = select.select([peers[0].sock], [], [], 0.3)
        assert not readable
        assert sum(process.cpu_times()[:2]) - used < 0.1
        assert send_now(receiver, SERVER, stop_id(), stop_body()).delivered
        for peer in peers:
            peer.sock.close()


def test_a_blocked_disk_stalls_no_other_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked, go_on = threading.Event(), threading.Event()
    finish = IncomingFile.finish

    def slow_finish(self: IncomingFile) -> None:
        if self.header.id.kind is Kind.GLOBALPARAM:
            blocked.set()
            assert go_on.wait(PATIENCE)
        finish(self)

    monkeypatch.setattr(IncomingFile, "finish", slow_finish)
    body = vector_bytes(tmp_path, 10)
    with receiving(node_config(tmp_path, limits={"threads": 3})) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        peer.offer(header_of(body), body)
        assert blocked.wait(PATIENCE)
        assert send_now(receiver, SERVER, stop_id(), stop_body()).delivered
        # The very connection goes on as well.
        peer.offer(header_of(stop_body(OTHER), stop_id(OTHER)), stop_body(OTHER), transfer=2)
        assert peer.expect(FrameType.ACK) == {}
        go_on.set()
        assert peer.expect(FrameType.ACK) == {}
