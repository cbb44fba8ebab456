from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import structlog
import yaml
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from presence import small_disk
from transfer_support import (
    PATIENCE,
    SERVER,
    TASK,
    RawPeer,
    files_in,
    global_id,
    model_file,
    node_config,
    peer_of,
    receiving,
    send_now,
    server_config,
    stop_body,
    stop_id,
)

from fedsim import __version__
from fedsim.config import ReceiverConfig, load_config
from fedsim.errors import EX_CONFIG, EX_UNAVAILABLE, Unavailable
from fedsim.messages import Assignment, Engine, Hello, Submission
from fedsim.receiver.incoming import IncomingFile
from fedsim.receiver.service import Receiver
from fedsim.settings import TaskSettings
from fedsim.spool.files import PERMITTED, FileHeader, FileId, Kind, Role, metadata_path
from fedsim.spool.layout import read_metadata
from fedsim.wire import Identity
from fedsim.wire.frames import MAGIC, PREFIX, FrameType, encode
from fedsim.wire.frames import Hello as HelloFrame
from fedsim.wire.sender import Sender, Status

NODE = Identity("node-1", Role.CLIENT)
WEB = Identity("web", Role.WEB)
OTHER = "6" * 32
SAMPLE = Path(__file__).parents[2] / "etc" / "fedsim" / "receiver.yml"


def header_of(body: bytes, file_id: FileId | None = None) -> FileHeader:
    return FileHeader(id=file_id or global_id(), size=len(body), digest=blake3(body).hexdigest())


def vector_bytes(tmp_path: Path, count: int) -> bytes:
    model_file(tmp_path / "v.npy", count)
    return (tmp_path / "v.npy").read_bytes()


def local_id(chunk: int = 0) -> FileId:
    return FileId(kind=Kind.LOCALPARAM, task=TASK, round=1, chunk=chunk)


def hello_body(node: str) -> bytes:
    return Hello(node=node, version=__version__, sent_at=1.0, clients=3, engine=Engine()).model_dump_json().encode()


def test_the_sample_configuration_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    config = load_config(SAMPLE, ReceiverConfig)
    minimal = tmp_path / "receiver.yml"
    keys = {"name": "server", "role": "server", "listen": {"port": 9001}, "spool": "/var/lib/fedsim/server"}
    minimal.write_text(yaml.safe_dump(keys | {"peers": [peer.model_dump() for peer in config.peers]}))
    assert load_config(minimal, ReceiverConfig) == config
    assert set(yaml.safe_load(SAMPLE.read_text())["limits"]) == set(type(config.limits).model_fields)


# -- who may send what


@pytest.mark.parametrize("identity", [Identity("stranger", Role.SERVER), Identity("server", Role.WEB)])
def test_a_peer_that_is_not_configured_in_its_role_is_turned_away(tmp_path: Path, identity: Identity) -> None:
    with receiving(node_config(tmp_path)) as receiver:
        outcome = send_now(receiver, identity, stop_id(), stop_body(), give_up_after=1)
        assert outcome.status is Status.GAVE_UP
        assert "is not a peer of node-1; add it to its receiver.yml" in outcome.message
        assert files_in(receiver.spool.root) == []


IDS = {
    Kind.HELLO: FileId(kind=Kind.HELLO),
    Kind.INITPARAM: FileId(kind=Kind.INITPARAM, task=TASK),
    Kind.TESTSET: FileId(kind=Kind.TESTSET, task=TASK, part="data"),
    Kind.GLOBALPARAM: global_id(),
    Kind.LOCALPARAM: local_id(),
    Kind.STOP: stop_id(),
}
FORBIDDEN = [
    (sender, to, kind)
    for sender in (SERVER, NODE, WEB)
    for to in (Role.SERVER, Role.CLIENT)
    for kind in Kind
    if kind not in PERMITTED.get((sender.role, to), ())
]


@pytest.mark.parametrize(("sender", "to", "kind"), FORBIDDEN)
def test_a_kind_that_is_not_permitted_is_refused(tmp_path: Path, sender: Identity, to: Role, kind: Kind) -> None:
    peers = [{"name": who.name, "role": who.role} for who in (SERVER, NODE, WEB)]
    with receiving(node_config(tmp_path, role=to, peers=peers)) as receiver:
        outcome = send_now(receiver, sender, IDS[kind], b"{}")
        assert (outcome.status, outcome.code) == (Status.REFUSED, "not_permitted")
        assert files_in(receiver.spool.root) == []


def test_all_permitted_json_arrives_where_it_belongs(tmp_path: Path) -> None:
    settings_ = TaskSettings()
    submission = Submission(task=TASK, settings=settings_).model_dump_json().encode()
    told = Assignment(
        task=TASK,
        number=1,
        settings=settings_,
        feature_shape=(784,),
        num_classes=10,
        first_client=0,
        num_clients=3,
        engine=Engine(),
    )
    assignment = told.model_dump_json().encode()
    with receiving(server_config(tmp_path / "server")) as receiver:
        assert send_now(receiver, NODE, IDS[Kind.HELLO], hello_body("node-1")).delivered
        assert send_now(receiver, WEB, IDS[Kind.INITPARAM], submission).delivered
        assert send_now(receiver, WEB, IDS[Kind.STOP], stop_body()).delivered
        assert files_in(receiver.spool.root) == ["hello/node-1.json", f"initparam/{TASK}.json", f"stop/{TASK}.json"]
        assert (receiver.spool.root / "stop" / f"{TASK}.json").read_bytes() == stop_body()
    with receiving(node_config(tmp_path / "node")) as receiver:
        assert send_now(receiver, SERVER, IDS[Kind.INITPARAM], assignment).delivered
        assert send_now(receiver, SERVER, IDS[Kind.STOP], stop_body()).delivered
        assert len(files_in(receiver.spool.root)) == 2


def test_a_local_update_always_lies_under_the_name_of_the_connection(tmp_path: Path) -> None:
    model_file(tmp_path / "m.npy", 10)
    with receiving(server_config(tmp_path)) as receiver:
        for number in (1, 2):
            assert send_now(receiver, Identity(f"node-{number}", Role.CLIENT), local_id(), tmp_path / "m.npy").delivered
        assert [item.sender for item in receiver.spool.arrived(Kind.LOCALPARAM)] == ["node-1", "node-2"]


@pytest.mark.parametrize(
    "file_id",
    [
        {"kind": "globalparam", "task": "../../../../tmp/x", "round": 1},
        {"kind": "globalparam", "task": TASK, "round": "../1"},
        {"kind": "globalparam", "task": TASK, "round": -1},
        {"kind": "../stop", "task": TASK},
        {"kind": "stop", "task": TASK, "name": "/etc/passwd"},
        {"kind": "stop", "task": TASK + "\u0000"},
        {"kind": "stop", "task": TASK, "round": 1},
    ],
)
def test_what_looks_like_a_path_is_refused_and_the_connection_goes_on(tmp_path: Path, file_id: dict[str, Any]) -> None:
    with receiving(node_config(tmp_path)) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        body = stop_body()
        peer.offer({"id": file_id, "size": len(body), "digest": blake3(body).hexdigest(), "meta": {}}, body)
        assert peer.expect(FrameType.ANSWER)["refused"]["code"] == "bad_header"
        peer.offer(header_of(body, stop_id()), body, transfer=2)
        assert peer.expect(FrameType.ACK) == {}
        assert files_in(tmp_path) == [f"spool/stop/{TASK}.json"]


# -- contents


def bad_vector(kind: str) -> bytes:
    import io  # noqa: PLC0415 - only here

    good = np.ones(30_000, np.float32)
    arrays = {
        "float64": good.astype(np.float64),
        "big endian": good.astype(">f4"),
        "two dimensions": good.reshape(2, -1),
        "empty": good[:0],
        "NaN": np.where(np.arange(30_000) == 29_999, np.nan, good).astype(np.float32),
        "Inf": np.where(np.arange(30_000) == 7, -np.inf, good).astype(np.float32),
        "objects": np.array([{"a": 1}], dtype=object),
    }
    if kind == "cut":
        return bad_vector("good")[:-4]
    if kind == "longer":
        return bad_vector("good") + b"\0\0\0\0"
    if kind == "no npy":
        return b"PK\x03\x04" + b"\0" * 100_000
    buffer = io.BytesIO()
    np.save(buffer, arrays.get(kind, good), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind",
    ["float64", "big endian", "two dimensions", "empty", "NaN", "Inf", "objects", "cut", "longer", "no npy"],
)
def test_parameters_that_are_no_finite_flat_vector_are_refused_named_and_gone(tmp_path: Path, kind: str) -> None:
    with receiving(node_config(tmp_path)) as receiver, structlog.testing.capture_logs() as logs:
        outcome = send_now(receiver, SERVER, global_id(), bad_vector(kind))
        assert (outcome.status, outcome.code) == (Status.REFUSED, "bad_content")
        assert outcome.message.startswith("globalparam is refused: ")
        assert receiver.counts()["refused_bad_content"] == 1
        assert files_in(receiver.spool.root) == []
        assert [log["code"] for log in logs if log["event"] == "file_refused"] == ["bad_content"]
        assert send_now(receiver, SERVER, global_id(), bad_vector("good")).delivered


@pytest.mark.parametrize(
    ("sender", "file_id", "body", "reason"),
    [
        (NODE, IDS[Kind.HELLO], hello_body("node-2"), "announces node-2"),
        (NODE, IDS[Kind.HELLO], b"[]", "not a valid Hello"),
        (NODE, IDS[Kind.HELLO], b"", "not a valid Hello"),
        (NODE, IDS[Kind.HELLO], b"\xff\xfe", "not a valid Hello"),
        (NODE, IDS[Kind.HELLO], b"[" * 50_000, "not a valid Hello"),
        (WEB, IDS[Kind.STOP], stop_body(OTHER), f"about the task {OTHER}"),
        (WEB, IDS[Kind.INITPARAM], b'{"task": "x"}', "not a valid Submission"),
        (NODE, IDS[Kind.TESTSET], bad_vector("good"), "dimensions"),
        (NODE, FileId(kind=Kind.TESTSET, task=TASK, part="label"), bad_vector("good"), "must be <i8"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(
    tmp_path: Path, sender: Identity, file_id: FileId, body: bytes, reason: str
) -> None:
    with receiving(server_config(tmp_path)) as receiver:
        outcome = send_now(receiver, sender, file_id, body)
        assert (outcome.status, outcome.code) == (Status.REFUSED, "bad_content")
        assert reason in outcome.message
        assert files_in(receiver.spool.root) == []


def test_a_test_set_is_taken_with_its_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros((5, 28, 28), np.float32))
    np.save(tmp_path / "l.npy", np.arange(5))
    with receiving(server_config(tmp_path)) as receiver:
        for part, name in (("data", "d.npy"), ("label", "l.npy")):
            file_id = FileId.model_validate({"kind": "testset", "task": TASK, "part": part})
            assert send_now(receiver, NODE, file_id, tmp_path / name).delivered


def test_metadata_with_nan_is_refused(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path)) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        body = vector_bytes(tmp_path, 10)
        header = {**header_of(body).model_dump(mode="json", exclude_none=True), "meta": {"x": float("nan")}}
        peer.offer(header, body)
        assert peer.expect(FrameType.ANSWER)["refused"]["code"] == "bad_header"


# -- limits


def test_a_file_that_is_too_large_is_refused_when_it_is_offered(tmp_path: Path) -> None:
    limits = {"max_parameter_bytes": 100_000, "max_json_bytes": 20}
    model_file(tmp_path / "m.npy", 50_000)
    with receiving(node_config(tmp_path, limits=limits)) as receiver:
        for file_id, source in ((global_id(), tmp_path / "m.npy"), (stop_id(), stop_body())):
            outcome = send_now(receiver, SERVER, file_id, source)
            assert (outcome.status, outcome.code) == (Status.REFUSED, "too_large")
            assert outcome.bytes_sent < 1000


def test_a_file_for_which_there_is_no_room_is_refused_when_it_is_offered(tmp_path: Path) -> None:
    model_file(tmp_path / "m.npy", 50_000)
    with receiving(node_config(tmp_path, limits={"min_free_bytes": 2**60})) as receiver:
        outcome = send_now(receiver, SERVER, global_id(), tmp_path / "m.npy", give_up_after=0.2)
        assert outcome.status is Status.GAVE_UP
        assert "must stay free" in outcome.message
        assert files_in(receiver.spool.root) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as disk:
        yield disk


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_a_disk_that_fills_refuses_the_file_and_everything_else_goes_on(tmp_path: Path, disk: Path) -> None:
    model_file(tmp_path / "m.npy", 800_000)
    with receiving(node_config(disk)) as receiver:
        body = vector_bytes(tmp_path, 800_000)
        with RawPeer(receiver.port) as peer:
            peer.expect(FrameType.HELLO)
            peer.offer(header_of(body))
            assert peer.expect(FrameType.ANSWER) == {"have": 0, "stored": False}
            ballast = disk / "ballast"
            fill(ballast)
            peer.data(0, body[: 1 << 20])
            refused = peer.expect(FrameType.ACK)["refused"]
            assert (refused["code"], refused["retry"]) == ("no_space", True)
            assert files_in(receiver.spool.incoming) == []
            ballast.unlink()
            peer.data(1 << 20, body[1 << 20 : 1 << 21])  # was on its way: dropped
            peer.offer(header_of(stop_body(), stop_id()), stop_body(), transfer=2)
            peer.expect(FrameType.ACK)
        assert send_now(receiver, SERVER, global_id(), tmp_path / "m.npy").delivered


def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, 50_000)
    with (
        receiving(node_config(tmp_path, limits={"max_bytes_in_flight": 300_000})) as receiver,
        RawPeer(receiver.port) as peer,
    ):
        peer.expect(FrameType.HELLO)
        peer.offer(header_of(body))
        peer.expect(FrameType.ANSWER)
        peer.offer(header_of(body, global_id(2)), transfer=2)
        refused = peer.expect(FrameType.ANSWER)["refused"]
        assert (refused["code"], refused["retry"]) == ("busy", True)
        peer.data(0, body)
        assert peer.expect(FrameType.ACK) == {}
        peer.offer(header_of(body, global_id(2)), transfer=3)
        assert "refused" not in peer.expect(FrameType.ANSWER)


def test_connections_of_one_peer_are_bounded(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path, limits={"max_connections_per_peer": 1})) as receiver:
        with RawPeer(receiver.port, NODE) as first, RawPeer(receiver.port, WEB) as other:
            first.expect(FrameType.HELLO)
            other.expect(FrameType.HELLO)
            with RawPeer(receiver.port, NODE) as second:
                second.expect_end("busy")
        assert send_now(receiver, NODE, IDS[Kind.HELLO], hello_body("node-1")).delivered


def test_connections_in_all_are_bounded(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path, limits={"max_connections": 2})) as receiver:
        with RawPeer(receiver.port, NODE) as first, RawPeer(receiver.port, WEB) as second:
            first.expect(FrameType.HELLO)
            second.expect(FrameType.HELLO)
            with RawPeer(receiver.port, NODE, hello=False) as third:
                assert third.sock.recv(1) == b""
        assert send_now(receiver, NODE, IDS[Kind.HELLO], hello_body("node-1")).delivered


# -- time


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


def test_hundreds_of_idle_connections_cost_no_thread_and_disturb_nobody(tmp_path: Path) -> None:
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


# -- offers that meet


def test_the_newest_of_two_offers_of_a_file_wins_and_resumes(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, 50_000)
    with receiving(node_config(tmp_path)) as receiver, RawPeer(receiver.port) as old, RawPeer(receiver.port) as new:
        for peer in (old, new):
            peer.expect(FrameType.HELLO)
        old.offer(header_of(body))
        old.expect(FrameType.ANSWER)
        old.data(0, body[:1000])
        old.send(encode(FrameType.PING))
        old.expect(FrameType.PONG)  # so it has seen the bytes before
        new.offer(header_of(body))
        assert new.expect(FrameType.ANSWER)["have"] == 1000
        old.data(1000, body[1000:2000])
        assert old.expect(FrameType.ACK)["refused"]["code"] == "superseded"
        new.data(1000, body[1000:])
        assert new.expect(FrameType.ACK) == {}
        assert receiver.spool.path(global_id(), "server").read_bytes() == body


def test_other_bytes_cannot_take_the_place_of_a_file(tmp_path: Path) -> None:
    model_file(tmp_path / "a.npy", 20_000, 1)
    model_file(tmp_path / "b.npy", 20_000, 2)
    with receiving(node_config(tmp_path)) as receiver:
        assert send_now(receiver, SERVER, global_id(), tmp_path / "a.npy").delivered
        outcome = send_now(receiver, SERVER, global_id(), tmp_path / "b.npy")
        assert (outcome.status, outcome.code) == (Status.REFUSED, "conflict")
        assert receiver.spool.path(global_id(), "server").read_bytes() == (tmp_path / "a.npy").read_bytes()


def test_a_newer_hello_takes_the_place_of_the_older(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path)) as receiver, Sender(NODE) as sender:
        for clients in (3, 4):
            body = hello_body("node-1").replace(b'"clients":3', b'"clients":%d' % clients)
            assert sender.send_and_wait(peer_of(receiver), IDS[Kind.HELLO], body, give_up_after=PATIENCE).delivered
        assert json.loads(receiver.spool.path(IDS[Kind.HELLO], "node-1").read_bytes())["clients"] == 4


def test_a_file_without_its_metadata_is_received_again(tmp_path: Path) -> None:
    model_file(tmp_path / "a.npy", 20_000, 1)
    with receiving(node_config(tmp_path)) as receiver:
        assert send_now(receiver, SERVER, global_id(), tmp_path / "a.npy").delivered
        path = receiver.spool.path(global_id(), "server")
        metadata_path(path).unlink()
        assert not send_now(receiver, SERVER, global_id(), tmp_path / "a.npy").already_there
        assert read_metadata(path).size == path.stat().st_size


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
        encode(FrameType.ACK, HelloFrame(name="x", role=Role.WEB, versions=(1,)), transfer=1),
        encode(FrameType.HELLO, HelloFrame(name="server", role=Role.SERVER, versions=(1,))),
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    assert lasting.hub.failure is None
    assert [path for path in files_in(lasting.spool.root) if not path.startswith(".incoming/")] == []


# -- the daemon


def run_daemon(config: Path, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    code = "from fedsim.receiver.main import main; main()"
    command = [sys.executable, "-c", code, "--config", str(config), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **more)


def write_config(folder: Path, config: ReceiverConfig) -> Path:
    path = folder / "receiver.yml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return path


def test_a_port_in_use_is_named_and_ends_with_69(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path)) as receiver:
        config = node_config(tmp_path / "other", listen={"port": receiver.port})
        with pytest.raises(Unavailable, match=f"port {receiver.port} on 127.0.0.1"), receiving(config):
            pass
        ended = run_daemon(write_config(tmp_path, config))
        assert ended.returncode == EX_UNAVAILABLE
        assert str(receiver.port) in ended.stderr


def test_a_broken_configuration_is_told_whole_and_ends_with_78(tmp_path: Path) -> None:
    path = tmp_path / "receiver.yml"
    path.write_text("name: node/1\nrole: boss\nlisten: {port: 1}\nspool: /tmp\npeers: []\nlimit: 3\n")
    ended = run_daemon(path, "--validate-config")
    assert ended.returncode == EX_CONFIG
    for place in ("'name'", "'role'", "'peers'", "'limit'"):
        assert place in ended.stderr
    assert run_daemon(SAMPLE, "--validate-config").returncode == 0


def test_a_socket_from_systemd_is_used(tmp_path: Path) -> None:
    given_port = socket.create_server(("127.0.0.1", 0))
    port = int(given_port.getsockname()[1])
    path = write_config(tmp_path, node_config(tmp_path, listen={"port": 1}))
    # As systemd does: descriptor 3, and the number of the process that it is for.
    start = (
        "import os, sys; os.dup2(int(sys.argv.pop(1)), 3); "
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
    )
    code = start + "from fedsim.receiver.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(given_port.fileno()), "--config", str(path)],
        pass_fds=[given_port.fileno()],
        stderr=subprocess.PIPE,
        text=True,
    )
    given_port.close()
    with RawPeer(port) as peer:
        peer.expect(FrameType.HELLO)
        process.send_signal(signal.SIGTERM)
        assert peer.expect(FrameType.BYE)["code"] == "stopping"
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors


def test_leftovers_of_dead_transfers_go_at_start(tmp_path: Path) -> None:
    config = node_config(tmp_path, limits={"keep_partial_seconds": 1000})
    with receiving(config) as receiver:
        incoming = receiver.spool.incoming
    (incoming / "old.part").touch()
    os.utime(incoming / "old.part", (1, 1))
    (incoming / "young.part").touch()
    with receiving(config):
        assert [path.name for path in incoming.iterdir()] == ["young.part"]


def test_a_peer_that_is_removed_from_the_configuration_can_send_nothing_more(tmp_path: Path) -> None:
    config = node_config(tmp_path)
    with receiving(config) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        others = node_config(tmp_path, peers=[{"name": "other", "role": "server"}])
        receiver.reload(others)
        peer.offer(header_of(stop_body(), stop_id()), stop_body())
        assert peer.expect(FrameType.ANSWER)["refused"]["code"] == "unknown_peer"
