from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfer_support import (
    PATIENCE,
    SERVER,
    TASK,
    RawPeer,
    files_in,
    header_of,
    node_config,
    receiving,
    send_now,
    stop_body,
    stop_id,
    vector_bytes,
)

from fedsim.receiver.service import Receiver
from fedsim.spool.files import Role
from fedsim.wire.protocol.frames import MAGIC, PREFIX, FrameType, HelloHeader, encode


@pytest.mark.parametrize("offset", [0, 999, 1001, 2**60])
def test_an_offset_that_does_not_fit_writes_nothing(tmp_path: Path, offset: int) -> None:
    body = vector_bytes(tmp_path, 50_000)
    with receiving(node_config(tmp_path)) as receiver:
        with RawPeer(receiver.port) as peer:
            peer.expect(FrameType.HELLO)
            peer.offer(header_of(body))
            peer.expect(FrameType.ANSWER)
            peer.data(0, body[:1000])
            peer.data(offset, b"x" * 10)
            peer.expect_end("bad_offset")
        (partial,) = receiver.spool.incoming.iterdir()
        assert partial.read_bytes() == body[:1000]


@pytest.mark.parametrize(
    "frames",
    [
        encode(FrameType.DATA, transfer=5, body_size=1) + b"x",
        encode(FrameType.ACK, HelloHeader(name="x", role=Role.WEB, versions=(1,)), transfer=1),
        encode(FrameType.HELLO, HelloHeader(name="server", role=Role.SERVER, versions=(1,))),
        PREFIX.pack(MAGIC, 1, 77, 0, 0, 0, 0, 0),
        PREFIX.pack(MAGIC, 1, FrameType.OFFER, 0, 1, 0, 2**31, 0),
        b"GET / HTTP/1.1\r\nHost: fedsim\r\n\r\n",
    ],
)
def test_frames_that_make_no_sense_end_the_connection_and_no_other(tmp_path: Path, frames: bytes) -> None:
    with receiving(node_config(tmp_path)) as receiver, RawPeer(receiver.port) as peer, RawPeer(receiver.port) as other:
        for who in (peer, other):
            who.expect(FrameType.HELLO)
        peer.send(frames)
        assert peer.expect(FrameType.BYE)["code"] in {"bad_frame", "not_fedsim"}
        other.send(encode(FrameType.PING))
        other.expect(FrameType.PONG)


def test_garbage_on_the_port_is_one_line_however_much_there_is(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path)) as receiver, structlog.testing.capture_logs() as logs:
        for seed in range(20):
            with socket.create_connection(("127.0.0.1", receiver.port)) as sock:
                sock.settimeout(PATIENCE)
                try:
                    sock.sendall(random.Random(seed).randbytes(1000))
                    while sock.recv(1000):
                        pass
                except (ConnectionResetError, BrokenPipeError):
                    continue
        assert send_now(receiver, SERVER, stop_id(), stop_body()).delivered
        assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["connection_refused"]
    assert receiver.counts()["connections_refused"] == 20


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(node_config(tmp_path_factory.mktemp("lasting"))) as receiver:
        yield receiver


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=500), start=st.sampled_from(["nothing", "hello", "offer", "header"]))
def test_arbitrary_bytes_never_place_a_file_nor_stop_the_receiver(lasting: Receiver, data: bytes, start: str) -> None:
    with RawPeer(lasting.port, hello=start != "nothing") as peer:
        if start == "offer":
            peer.send(PREFIX.pack(MAGIC, 1, FrameType.OFFER, 0, 1, 0, len(data), 0))
        if start == "header":
            head = b'{"id":{"kind":"stop","task":"' + TASK.encode() + b'"},"size":%d,"digest":' % len(data)
            text = head + b'"' + blake3(data).hexdigest().encode() + b'"}'
            peer.send(PREFIX.pack(MAGIC, 1, FrameType.OFFER, 0, 1, 0, len(text), len(data)) + text)
        with suppress(OSError):
            peer.send(data)
            peer.sock.shutdown(socket.SHUT_WR)
            while peer.sock.recv(4096):
                pass
    assert lasting.reactor.failure is None
    assert [path for path in files_in(lasting.spool.root) if not path.startswith(".incoming/")] == []
