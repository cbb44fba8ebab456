from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from transfer_support import (
    HELLO,
    NODE,
    PATIENCE,
    SERVER,
    RawPeer,
    global_id,
    header_of,
    hello_body,
    model_file,
    node_config,
    peer_of,
    receiving,
    send_now,
    server_config,
    vector_bytes,
)

from fedsim.inbox.spool_inbox import SpoolInbox
from fedsim.inbox.validation import check_contents
from fedsim.spool.durable import write_bytes
from fedsim.spool.files import Role, metadata_path
from fedsim.spool.layout import Metadata, read_metadata
from fedsim.spool.npy import hash_file
from fedsim.wire import Identity
from fedsim.wire.protocol.frames import FrameType, encode
from fedsim.wire.sender import Sender, Status


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


class Held:
    """Holds the receiver's look into files whose first bytes are `start`, as a disk that is slow would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

        def check(path: Path, *args: Any) -> None:
            if path.read_bytes().startswith(start):
                self.reached.set()
                assert self.go_on.wait(PATIENCE)
            check_contents(path, *args)

        monkeypatch.setattr("fedsim.inbox.spool_inbox.check_contents", check)


def belongs_together(path: Path) -> bool:
    """Whether file and metadata tell the same."""
    told = read_metadata(path)
    return (told.digest, told.size) == (hash_file(path), path.stat().st_size)


@pytest.mark.parametrize("count", [10, 50_000], ids=["inline", "large"])
@pytest.mark.parametrize("same", [True, False], ids=["same bytes", "other bytes"])
def test_an_offer_of_a_file_that_is_being_verified_is_answered_at_once_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, same: bool
) -> None:
    first, second = vector_bytes(tmp_path, count, 1), vector_bytes(tmp_path, count, 1 if same else 2)
    held = Held(monkeypatch, first)
    # One thread besides the one that verifies: should it wait, nothing would ever be answered.
    with (
        receiving(node_config(tmp_path, limits={"threads": 2})) as receiver,
        RawPeer(receiver.port) as one,
        RawPeer(receiver.port) as other,
    ):

        def offer(peer: RawPeer, body: bytes, transfer: int = 1) -> dict[str, Any]:
            inline = count == 10
            peer.offer(header_of(body), body if inline else b"", transfer)
            return {} if inline and body is first and transfer == 1 and peer is one else peer.expect(FrameType.ANSWER)

        for peer in (one, other):
            peer.expect(FrameType.HELLO)
        assert "refused" not in offer(one, first)
        if count > 10:
            one.data(0, first)
        assert held.reached.wait(PATIENCE)
        refused = offer(other, second)["refused"]
        assert (refused["code"], refused["retry"]) == ("busy", True)
        held.go_on.set()
        assert one.expect(FrameType.ACK) == {}
        answer = offer(other, second, transfer=2)
        assert answer.get("refused", {}).get("code") == (None if same else "conflict")
        assert answer["stored"] is same
        path = receiver.spool.path(global_id(), "server")
        assert path.read_bytes() == first
        assert belongs_together(path)


def test_of_two_files_for_one_place_only_the_newer_offer_continues(tmp_path: Path) -> None:
    bodies = [vector_bytes(tmp_path, 50_000, seed) for seed in (1, 2)]
    with receiving(node_config(tmp_path)) as receiver, RawPeer(receiver.port) as old, RawPeer(receiver.port) as new:
        for peer in (old, new):
            peer.expect(FrameType.HELLO)
        old.offer(header_of(bodies[0]))
        old.expect(FrameType.ANSWER)
        new.offer(header_of(bodies[1]))
        new.expect(FrameType.ANSWER)
        old.data(0, bodies[0])
        assert old.expect(FrameType.ACK)["refused"]["code"] == "superseded"
        new.data(0, bodies[1])
        assert new.expect(FrameType.ACK) == {}
        old.offer(header_of(bodies[0]), transfer=2)
        assert old.expect(FrameType.ANSWER)["refused"]["code"] == "conflict"
        path = receiver.spool.path(global_id(), "server")
        assert path.read_bytes() == bodies[1]
        assert belongs_together(path)


def test_two_senders_cannot_push_each_other_out_of_one_place(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, 50_000)
    peers = [{"name": name, "role": "server"} for name in ("server", "second")]
    with (
        receiving(node_config(tmp_path, peers=peers)) as receiver,
        RawPeer(receiver.port) as one,
        RawPeer(receiver.port, Identity("second", Role.SERVER)) as other,
    ):
        for peer in (one, other):
            peer.expect(FrameType.HELLO)
        one.offer(header_of(body))
        one.expect(FrameType.ANSWER)
        other.offer(header_of(body))
        assert other.expect(FrameType.ANSWER)["refused"]["code"] == "busy"
        one.data(0, body)
        assert one.expect(FrameType.ACK) == {}


def test_a_file_that_appears_in_the_place_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, others = vector_bytes(tmp_path, 50_000, 1), vector_bytes(tmp_path, 50_000, 2)
    held = Held(monkeypatch, body)
    with receiving(node_config(tmp_path)) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        peer.offer(header_of(body))
        peer.expect(FrameType.ANSWER)
        peer.data(0, body)
        assert held.reached.wait(PATIENCE)
        path = receiver.spool.path(global_id(), "server")
        write_bytes(path, others)
        held.go_on.set()
        assert peer.expect(FrameType.ACK)["refused"]["code"] == "conflict"
        assert path.read_bytes() == others
        assert not metadata_path(path).exists()


def test_metadata_that_a_crash_left_never_stands_beside_another_file(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", 20_000)
    with receiving(node_config(tmp_path)) as receiver:
        path = receiver.spool.path(global_id(), "server")
        left = Metadata(sender="server", digest="0" * 64, size=1, meta={"chunks": []})
        write_bytes(metadata_path(path), left.model_dump_json().encode())
        assert send_now(receiver, SERVER, global_id(), tmp_path / "m.npy", digest=digest).delivered
        assert belongs_together(path)


def test_new_metadata_waits_for_the_disk_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = threading.Event(), threading.Event()
    body = vector_bytes(tmp_path, 50_000)

    def slow(path: Path, data: bytes, by_way_of: Path) -> None:
        reached.set()
        assert go_on.wait(PATIENCE)
        write_bytes(path, data, by_way_of=by_way_of)

    with receiving(node_config(tmp_path, limits={"threads": 2})) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        peer.offer(header_of(body))
        peer.expect(FrameType.ANSWER)
        peer.data(0, body)
        assert peer.expect(FrameType.ACK) == {}
        monkeypatch.setattr("fedsim.inbox.incoming_file.write_bytes", slow)
        peer.offer(header_of(body).model_copy(update={"meta": {"used_through": 1}}), transfer=2)
        assert peer.expect(FrameType.ANSWER)["have"] == len(body)
        assert reached.wait(PATIENCE)
        peer.send(encode(FrameType.PING))
        peer.expect(FrameType.PONG)
        go_on.set()
        assert peer.expect(FrameType.ACK) == {}
        assert read_metadata(receiver.spool.path(global_id(), "server")).meta == {"used_through": 1}


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
            assert sender.send_and_wait(peer_of(receiver), HELLO, body, give_up_after=PATIENCE).delivered
        assert json.loads(receiver.spool.path(HELLO, "node-1").read_bytes())["clients"] == 4


def test_a_file_without_its_metadata_is_received_again(tmp_path: Path) -> None:
    model_file(tmp_path / "a.npy", 20_000, 1)
    with receiving(node_config(tmp_path)) as receiver:
        assert send_now(receiver, SERVER, global_id(), tmp_path / "a.npy").delivered
        path = receiver.spool.path(global_id(), "server")
        metadata_path(path).unlink()
        assert not send_now(receiver, SERVER, global_id(), tmp_path / "a.npy").already_there
        assert read_metadata(path).size == path.stat().st_size


@pytest.mark.parametrize("where", ["offer", "_ended"])
def test_an_exception_while_a_connection_is_served_ends_that_connection_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    model_file(tmp_path / "a.npy", 20_000, 1)
    raised: list[str] = []

    def broken(self: SpoolInbox, *arguments: Any) -> Any:
        if raised:
            return original(self, *arguments)
        raised.append(where)
        raise KeyError(where)

    original = getattr(SpoolInbox, where)
    monkeypatch.setattr(SpoolInbox, where, broken)
    with receiving(node_config(tmp_path)) as receiver:
        assert send_now(receiver, SERVER, global_id(), tmp_path / "a.npy").delivered
        assert raised == [where]
        assert receiver.reactor.failure is None
        assert receiver.counts()["connections_refused"] == 1
