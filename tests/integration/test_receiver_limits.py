from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from presence import small_disk
from transfer_support import (
    HELLO,
    NODE,
    OTHER,
    SERVER,
    WEB,
    RawPeer,
    files_in,
    global_id,
    header_of,
    hello_body,
    local_id,
    model_file,
    node_config,
    receiving,
    send_now,
    server_config,
    stop_body,
    stop_id,
    vector_bytes,
)

from fedsim.receiver.service import Receiver
from fedsim.spool.files import Role
from fedsim.wire import Identity
from fedsim.wire.protocol.frames import PREFIX, FrameType
from fedsim.wire.sender import Status


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
        outcome = send_now(receiver, SERVER, global_id(), tmp_path / "m.npy", give_up_after=2)
        assert outcome.status is Status.GAVE_UP
        assert "must stay free" in outcome.message
        assert files_in(receiver.spool.root) == []


def test_a_stop_gets_through_where_a_model_finds_no_room(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path, limits={"min_free_bytes": 2**60})) as receiver:
        assert send_now(receiver, SERVER, stop_id(), stop_body()).delivered
        receiver.reload(node_config(tmp_path, limits={"min_free_bytes": 2**60, "min_free_bytes_for_json": 2**60}))
        outcome = send_now(receiver, SERVER, stop_id(OTHER), stop_body(OTHER), give_up_after=2)
        assert "must stay free" in outcome.message


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as disk:
        yield disk


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_a_disk_that_fills_refuses_the_file_and_everything_else_continues(tmp_path: Path, disk: Path) -> None:
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


NODE_2 = Identity("node-2", Role.CLIENT)
# Two peers: half of everything for each.
TWO = {"peers": [{"name": "node-1", "role": "client"}, {"name": "node-2", "role": "client"}]}


def open_offers(peer: RawPeer, body: bytes, count: int) -> list[str]:
    """Offer this many bodies, numbered from 0; returns the codes of the refusals ("" where there was none)."""
    peer.expect(FrameType.HELLO)
    codes = []
    for chunk in range(count):
        peer.offer(header_of(body, local_id(chunk)), transfer=chunk + 1)
        codes.append(peer.expect(FrameType.ANSWER).get("refused", {}).get("code", ""))
    return codes


@pytest.mark.parametrize("limits", [{"max_bytes_in_flight": 900_000}, {"max_files_in_flight": 4}])
def test_one_peer_takes_no_more_than_its_share(tmp_path: Path, limits: dict[str, int]) -> None:
    body = vector_bytes(tmp_path, 50_000)
    with (
        receiving(server_config(tmp_path, limits=limits, **TWO)) as receiver,
        RawPeer(receiver.port, NODE) as greedy,
        RawPeer(receiver.port, NODE_2) as other,
    ):
        assert open_offers(greedy, body, 4) == ["", "", "busy", "busy"]
        assert open_offers(other, body, 2) == ["", ""]
        other.data(0, body, transfer=1)
        assert other.expect(FrameType.ACK) == {}


def test_a_file_beyond_a_peers_share_is_too_large_for_ever(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, 50_000)
    with (
        receiving(server_config(tmp_path, limits={"max_bytes_in_flight": 300_000}, **TWO)) as receiver,
        RawPeer(receiver.port, NODE) as peer,
    ):
        assert open_offers(peer, body, 1) == ["too_large"]


def test_one_peer_gets_no_more_than_its_share_of_the_disk(tmp_path: Path, disk: Path) -> None:
    body = vector_bytes(tmp_path, 300_000)
    with (
        receiving(server_config(disk, **TWO)) as receiver,
        RawPeer(receiver.port, NODE) as greedy,
        RawPeer(receiver.port, NODE_2) as other,
    ):
        assert open_offers(greedy, body, 3) == ["", "no_space", "no_space"]
        assert open_offers(other, body, 1) == [""]


def leave_parts(receiver: Receiver, body: bytes, count: int, identity: Identity = NODE) -> None:
    """Begin to send this many files, 100 kB of each, and disconnect."""
    for chunk in range(count):
        with RawPeer(receiver.port, identity) as peer:
            peer.expect(FrameType.HELLO)
            peer.offer(header_of(body, local_id(chunk)))
            peer.expect(FrameType.ANSWER)
            peer.data(0, body[:100_000])
            leave(peer)


def leave(peer: RawPeer) -> None:
    """Close the connection, and wait until the receiver has released its files."""
    peer.send(b"x" * PREFIX.size)
    peer.expect_end("not_fedsim")


def parts(receiver: Receiver) -> list[str]:
    """Whose parts are kept."""
    return sorted(path.name.rsplit(".", 2)[0] for path in receiver.spool.incoming.iterdir())


@pytest.mark.parametrize("limits", [{"max_bytes_in_flight": 900_000}, {"max_files_in_flight": 6}])
def test_half_received_files_of_a_peer_are_bounded_and_its_oldest_go_first(
    tmp_path: Path, limits: dict[str, int]
) -> None:
    body = vector_bytes(tmp_path, 50_000)
    with receiving(server_config(tmp_path, limits=limits, **TWO)) as receiver:
        leave_parts(receiver, body, 1, NODE_2)
        leave_parts(receiver, body, 20)
        assert parts(receiver) == ["node-1"] * 3 + ["node-2"]
    # A restart knows whose they are.
    with receiving(server_config(tmp_path, limits=limits, **TWO)) as receiver:
        with RawPeer(receiver.port, NODE) as peer:
            peer.expect(FrameType.HELLO)
            for transfer, (chunk, have) in enumerate([(19, 100_000), (18, 100_000), (0, 0)], 1):
                peer.offer(header_of(body, local_id(chunk)), transfer=transfer)
                assert peer.expect(FrameType.ANSWER).get("have", 0) == have
        with RawPeer(receiver.port, NODE_2) as peer:
            peer.expect(FrameType.HELLO)
            peer.offer(header_of(body, local_id(0)))
            assert peer.expect(FrameType.ANSWER)["have"] == 100_000


def test_half_received_files_give_way_to_a_file_that_needs_their_room(tmp_path: Path, disk: Path) -> None:
    large, body = vector_bytes(tmp_path, 450_000), vector_bytes(tmp_path, 250_000)
    (disk / "ballast").write_bytes(b"x" * 2_000_000)
    with receiving(server_config(disk, limits={"max_share_per_peer": 1}, **TWO)) as receiver:
        with RawPeer(receiver.port, NODE) as peer:
            peer.expect(FrameType.HELLO)
            peer.offer(header_of(body, local_id(0)))
            peer.expect(FrameType.ANSWER)
            peer.data(0, body[:500_000])
            leave(peer)
        with RawPeer(receiver.port, NODE_2) as peer:
            assert open_offers(peer, large, 1) == [""]
            peer.data(0, large[: 1 << 20])
            peer.data(1 << 20, large[1 << 20 :])
            assert peer.expect(FrameType.ACK) == {}
        assert parts(receiver) == []


def test_connections_of_one_peer_are_bounded(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path, limits={"max_connections_per_peer": 1})) as receiver:
        with RawPeer(receiver.port, NODE) as first, RawPeer(receiver.port, WEB) as other:
            first.expect(FrameType.HELLO)
            other.expect(FrameType.HELLO)
            with RawPeer(receiver.port, NODE) as second:
                second.expect_end("busy")
        assert send_now(receiver, NODE, HELLO, hello_body("node-1")).delivered


def test_connections_in_all_are_bounded(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path, limits={"max_connections": 2})) as receiver:
        with RawPeer(receiver.port, NODE) as first, RawPeer(receiver.port, WEB) as second:
            first.expect(FrameType.HELLO)
            second.expect(FrameType.HELLO)
            with RawPeer(receiver.port, NODE) as third:
                third.expect_end("busy")
        assert send_now(receiver, NODE, HELLO, hello_body("node-1")).delivered
