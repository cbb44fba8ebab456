from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from blake3 import blake3
from transfer_support import (
    NODE,
    OTHER,
    PATIENCE,
    SERVER,
    TASK,
    WEB,
    Outcomes,
    RawPeer,
    files_in,
    global_id,
    header_of,
    hello_body,
    local_id,
    meta_of,
    model_file,
    node_config,
    peer_of,
    receiving,
    send_now,
    server_config,
    stop_body,
    stop_id,
    vector_bytes,
    want_all,
)

from fedsim.array_layout import Layout
from fedsim.config import Address
from fedsim.errors import Refused, Unavailable
from fedsim.messages import Assignment, EngineInfo, ModelSpec, Submission, Uplink
from fedsim.receiver.service import Receiver
from fedsim.settings import TaskSettings
from fedsim.spool.allowlist import check_wanted, want
from fedsim.spool.clear import clear_task
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.kinds import permitted_kinds
from fedsim.wire import Identity
from fedsim.wire.protocol.frames import FrameType
from fedsim.wire.sender import Peer, Sender, Status

# -- who may send what


@pytest.mark.parametrize("identity", [Identity("stranger", Role.SERVER), Identity("server", Role.WEB)])
def test_a_peer_that_is_not_configured_in_its_role_is_turned_away(tmp_path: Path, identity: Identity) -> None:
    with receiving(node_config(tmp_path)) as receiver:
        outcome = send_now(receiver, identity, stop_id(), stop_body(), give_up_after=3)
        assert outcome.status is Status.GAVE_UP
        assert "is not a peer of node-1; add it to its receiver.yml" in outcome.message
        assert files_in(receiver.spool.root) == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_receiver_on_all_addresses_serves_ipv4_and_ipv6(tmp_path: Path, address: str) -> None:
    everywhere = {"listen": {"address": "::", "port": 0}, "insecure_plaintext": True}
    with (
        receiving(node_config(tmp_path, **everywhere)) as receiver,
        Sender(SERVER) as sender,
        structlog.testing.capture_logs() as log,
    ):
        peer = Peer("node-1", address, receiver.port)
        sender.send_and_wait(peer, stop_id(), stop_body(), give_up_after=PATIENCE)
        stranger = Sender(Identity("stranger", Role.SERVER))
        with stranger, pytest.raises(Unavailable):
            stranger.send_and_wait(peer, stop_id(), stop_body(), give_up_after=1)
    refused = [str(event["address"]) for event in log if event["event"] == "connection_refused"]
    assert refused
    assert all(line.startswith(str(Address(address=address, port=0)).removesuffix("0")) for line in refused)


IDS = {
    Kind.HELLO: FileId(kind=Kind.HELLO),
    Kind.INITPARAM: FileId(kind=Kind.INITPARAM, task=TASK),
    Kind.TESTSET: FileId(kind=Kind.TESTSET, task=TASK, part="data"),
    Kind.GLOBALPARAM: global_id(),
    Kind.LOCALPARAM: local_id(),
    Kind.STOP: stop_id(),
    Kind.MEASURE: FileId(kind=Kind.MEASURE, task=TASK),
    Kind.REQUEST: FileId(kind=Kind.REQUEST, task=TASK, round=0, phase="statistics"),
    Kind.ANSWER: FileId(kind=Kind.ANSWER, task=TASK, round=0, phase="statistics"),
    Kind.EVALUATE: FileId(kind=Kind.EVALUATE, task=TASK, round=2),
    Kind.METRICS: FileId(kind=Kind.METRICS, task=TASK, round=2),
}
FORBIDDEN = [
    (sender, to, kind)
    for sender in (SERVER, NODE, WEB)
    for to in (Role.SERVER, Role.CLIENT)
    for kind in Kind
    if kind not in permitted_kinds(sender.role, to)
]


@pytest.mark.parametrize(("sender", "to", "kind"), FORBIDDEN)
def test_a_kind_that_is_not_permitted_is_refused(tmp_path: Path, sender: Identity, to: Role, kind: Kind) -> None:
    peers = [{"name": who.name, "role": who.role} for who in (SERVER, NODE, WEB)]
    with receiving(node_config(tmp_path, role=to, peers=peers)) as receiver:
        with RawPeer(receiver.port, sender) as peer:  # a Sender would not even send it
            peer.expect(FrameType.HELLO)
            peer.offer(header_of(b"{}", IDS[kind]), b"{}")
            between_nodes = (sender, to, kind) == (NODE, Role.CLIENT, Kind.GLOBALPARAM)
            code = "not_announced" if between_nodes else "not_permitted"  # see test_forwarding.py
            assert peer.expect(FrameType.ANSWER)["refused"]["code"] == code
        assert files_in(receiver.spool.root) == []


def test_all_permitted_json_arrives_where_it_belongs(tmp_path: Path) -> None:
    settings_ = TaskSettings()
    submission = Submission(task=TASK, settings=settings_).model_dump_json().encode()
    told = Assignment(
        task=TASK,
        number=1,
        settings=settings_,
        model_spec=ModelSpec.of(settings_, (784,), 10),
        first_client=0,
        num_clients=3,
        engine=EngineInfo(),
        uplink=Uplink.SUM,
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


def test_a_local_update_is_always_stored_under_the_name_of_the_connection(tmp_path: Path) -> None:
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
def test_what_looks_like_a_path_is_refused_and_the_connection_continues(
    tmp_path: Path, file_id: dict[str, Any]
) -> None:
    with receiving(node_config(tmp_path)) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        body = stop_body()
        peer.offer({"id": file_id, "size": len(body), "digest": blake3(body).hexdigest(), "meta": {}}, body)
        assert peer.expect(FrameType.ANSWER)["refused"]["code"] == "bad_header"
        peer.offer(header_of(body, stop_id()), body, transfer=2)
        assert peer.expect(FrameType.ACK) == {}
        assert files_in(tmp_path) == [f"spool/stop/{TASK}.json"]


# -- what is wanted


def vector_of(tmp_path: Path) -> Path:
    model_file(tmp_path / "m.npy", 10)
    return tmp_path / "m.npy"


def test_a_test_set_that_no_one_asked_for_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros((5, 28, 28), np.float32))
    with receiving(server_config(tmp_path)) as receiver:
        want(receiver.spool, TASK, {Kind.LOCALPARAM: ["node-1", "node-2"], Kind.TESTSET: ["node-2"]})
        outcome = send_now(receiver, NODE, IDS[Kind.TESTSET], tmp_path / "d.npy")
        assert (outcome.status, outcome.code) == (Status.REFUSED, "not_wanted")
        want(receiver.spool, TASK, {Kind.LOCALPARAM: ["node-1", "node-2"]})
        outcome = send_now(receiver, Identity("node-2", Role.CLIENT), IDS[Kind.TESTSET], tmp_path / "d.npy")
        assert (outcome.status, outcome.code) == (Status.REFUSED, "not_wanted")
        assert files_in(receiver.spool.root) == []


def test_an_update_of_a_node_that_takes_no_part_is_refused(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path)) as receiver:
        want(receiver.spool, TASK, {Kind.LOCALPARAM: ["node-2"]})
        outcome = send_now(receiver, NODE, local_id(), vector_of(tmp_path))
        assert (outcome.status, outcome.code) == (Status.REFUSED, "not_wanted")
        assert send_now(receiver, Identity("node-2", Role.CLIENT), local_id(), vector_of(tmp_path)).delivered


def test_an_update_of_another_length_than_the_model_is_refused_and_disturbs_nothing_else(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path)) as receiver:
        want(receiver.spool, TASK, {Kind.LOCALPARAM: ["node-1"]}, layout=Layout({"parameters": (11,)}))
        outcome = send_now(receiver, NODE, local_id(), vector_of(tmp_path))
        assert (outcome.status, outcome.code) == (Status.REFUSED, "bad_content")
        assert "it has 10 elements of float32; an update of this task has 11" in outcome.message
        assert receiver.counts()["refused_bad_content"] == 1
        assert files_in(receiver.spool.root) == []
        want(receiver.spool, TASK, {Kind.LOCALPARAM: ["node-1"]}, layout=Layout({"parameters": (10,)}))
        assert send_now(receiver, NODE, local_id(), vector_of(tmp_path)).delivered


@pytest.mark.parametrize("host", ["server", "node"])
def test_an_early_sender_is_asked_to_try_again_and_loses_nothing(tmp_path: Path, host: str) -> None:
    make, sender, file_id = {
        "server": (server_config, NODE, FileId(kind=Kind.LOCALPARAM, task=OTHER, round=1, chunk=0)),
        "node": (node_config, SERVER, global_id(task=OTHER)),
    }[host]
    outcomes = Outcomes()
    with receiving(make(tmp_path)) as receiver, Sender(sender) as early, RawPeer(receiver.port, sender) as peer:
        peer.expect(FrameType.HELLO)
        peer.offer(header_of(vector_bytes(tmp_path, 50_000), file_id))
        refused = peer.expect(FrameType.ANSWER)["refused"]
        assert (refused["code"], refused["retry"]) == ("unknown_task", True)
        early.send(peer_of(receiver), file_id, vector_of(tmp_path), meta=meta_of(file_id), on_done=outcomes)
        want_all(receiver.spool, OTHER)
        assert outcomes.wait(1)[0].delivered


def test_a_receiver_that_starts_again_still_knows_what_is_wanted_until_the_task_is_cleared(tmp_path: Path) -> None:
    for kept in (True, False):
        receiver = Receiver(server_config(tmp_path))
        receiver.start()
        if kept:
            want(receiver.spool, TASK, {Kind.LOCALPARAM: ["node-1"]})
        outcome = send_now(receiver, NODE, local_id(chunk=int(kept)), vector_of(tmp_path))
        assert outcome.delivered
        receiver.close()
    clear_task(receiver.spool, TASK)
    with pytest.raises(Refused, match="expected here") as refused:
        check_wanted(receiver.spool, local_id(), "node-1")
    assert (refused.value.code, refused.value.retry) == ("unknown_task", True)


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
        (NODE, IDS[Kind.HELLO], hello_body("node-2"), "names the node node-2"),
        (NODE, IDS[Kind.HELLO], b"[]", "not a valid Hello"),
        (NODE, IDS[Kind.HELLO], b"", "not a valid Hello"),
        (NODE, IDS[Kind.HELLO], b"\xff\xfe", "not a valid Hello"),
        (NODE, IDS[Kind.HELLO], b"[" * 50_000, "not a valid Hello"),
        (WEB, IDS[Kind.STOP], stop_body(OTHER), f"about the task {OTHER}"),
        (WEB, IDS[Kind.INITPARAM], b'{"task": "x"}', "not a valid Submission"),
        (NODE, IDS[Kind.TESTSET], bad_vector("good"), "dimensions"),
        (NODE, FileId(kind=Kind.TESTSET, task=TASK, part="label"), bad_vector("float64"), "must be <i8 or <f4"),
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
