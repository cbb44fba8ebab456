"""A global model travels from node to node, and reaches each of them whatever happens on the way."""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path

import pytest
from forwarding_support import (
    COUNT,
    ChainOfOffers,
    announcement,
    forwarding_node,
    forwarding_nodes,
    meta_for,
    name_of,
    server_sender,
)
from inotify_simple import INotify, flags
from tls_support import Pki, logged
from transfer_support import (
    NODE,
    PATIENCE,
    SERVER,
    TASK,
    Proxy,
    RawPeer,
    global_id,
    header_of,
    model_file,
    send_now,
    stop_body,
    stop_id,
    vector_bytes,
)

from fedsim.forwarding import Forwarding, Successor
from fedsim.receiver.service import Receiver
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import read_metadata
from fedsim.wire import Identity, Sender
from fedsim.wire.protocol.frames import FrameType, encode


def ports_of(receivers: list[Receiver]) -> list[int]:
    return [receiver.port for receiver in receivers]


def check_stored(receivers: list[Receiver], model: bytes, round_number: int = 1) -> None:
    for number, receiver in enumerate(receivers):
        path = receiver.spool.path(global_id(round_number), "")
        assert path.read_bytes() == model
        metadata = read_metadata(path)
        assert metadata.sender == "server"
        assert metadata.meta["used_through"] == number, "what belongs to the model came from the server"
        assert "forwarding" not in metadata.meta


def test_a_model_goes_from_node_to_node_and_leaves_the_server_once(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", COUNT)
    with forwarding_nodes(tmp_path, 4) as receivers, server_sender() as sender:
        chain = ChainOfOffers(sender, ports_of(receivers), tmp_path / "m.npy", digest)
        chain.announce(3, 2, 1, 0)
        found = chain.by_node(4)
        check_stored(receivers, (tmp_path / "m.npy").read_bytes())
        passed_on = [receiver.counts().get("models_passed_on", 0) for receiver in receivers]
    assert all(outcome.delivered for outcome in found.values())
    assert [found[name_of(number)].already_there for number in range(4)] == [False, True, True, True]
    assert sum(outcome.bytes_sent for outcome in found.values()) < 1.1 * 4 * COUNT
    assert passed_on[-1] == 0
    assert sum(passed_on) >= 2, "the last of these counts may follow the file"


def test_what_is_sent_on_is_what_has_arrived_so_far(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, COUNT)
    half = len(body) // 2
    with forwarding_nodes(tmp_path, 2) as receivers, server_sender() as sender, RawPeer(receivers[0].port) as raw:
        chain = ChainOfOffers(sender, ports_of(receivers), tmp_path / "v.npy", header_of(body).digest)
        chain.announce(1)
        raw.expect(FrameType.HELLO)
        raw.offer(header_of(body).model_copy(update={"meta": meta_for(0, ports_of(receivers))}))
        assert raw.expect(FrameType.ANSWER)["have"] == 0
        for offset in range(0, half, 1 << 20):
            raw.data(offset, body[offset : min(half, offset + (1 << 20))])
        await_part(receivers[1], half)
        assert not chain.outcomes.all, "the server's offer waits"
        for offset in range(half, len(body), 1 << 20):
            raw.data(offset, body[offset : offset + (1 << 20)])
        assert raw.expect(FrameType.ACK).get("refused") is None
        assert chain.by_node(1)["node-2"].already_there
        assert receivers[1].spool.path(global_id(), "").read_bytes() == body


def await_part(receiver: Receiver, count: int) -> None:
    """Wait until a receiver has received this many bytes of a file."""
    with INotify() as inotify:
        inotify.add_watch(receiver.spool.incoming, flags.MODIFY | flags.CREATE)
        until = time.monotonic() + PATIENCE
        while not any(path.stat().st_size >= count for path in receiver.spool.incoming.glob("*.part")):
            assert time.monotonic() < until
            inotify.read(timeout=1000)


def test_when_a_hop_breaks_in_the_middle_the_server_sends_the_rest(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", COUNT)
    size = (tmp_path / "m.npy").stat().st_size
    with forwarding_nodes(tmp_path, 4) as receivers, server_sender() as sender:
        ports = ports_of(receivers)
        with Proxy(ports[1], repeat(size // 2)) as broken:
            chain = ChainOfOffers(sender, ports, tmp_path / "m.npy", digest)
            chain.announce(3, 2, 1)
            chain.announce(0, ports=[ports[0], broken.port, *ports[2:]])
            found = chain.by_node(4)
        check_stored(receivers, (tmp_path / "m.npy").read_bytes())
    assert all(outcome.delivered for outcome in found.values())
    assert size // 4 < found["node-2"].bytes_sent < 3 * size // 4, "only the rest came from the server"
    assert [found[name].already_there for name in ("node-3", "node-4")] == [True, True], "it goes on from there"


def test_a_hop_that_never_comes_holds_nothing_up_beyond_the_time_that_the_server_gave(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", COUNT)
    with forwarding_nodes(tmp_path, 3) as receivers, server_sender() as sender:
        chain = ChainOfOffers(sender, ports_of(receivers), tmp_path / "m.npy", digest)
        chain.announce(2, 1, seconds=0.5)  # node-1 is offered nothing, so that it passes nothing on
        found = chain.by_node(2)
        assert found["node-2"].delivered
        assert not found["node-2"].already_there
        assert found["node-3"].delivered
        assert receivers[2].spool.path(global_id(), "").read_bytes() == (tmp_path / "m.npy").read_bytes()


def test_a_hop_that_is_too_slow_is_superseded_by_the_server_which_sends_the_rest(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, COUNT)
    header = header_of(body)
    with forwarding_nodes(tmp_path, 2) as receivers, server_sender() as sender:
        chain = ChainOfOffers(sender, ports_of(receivers), tmp_path / "v.npy", header.digest)
        announced = announcement(receivers[1])
        chain.announce(1, seconds=1.0)
        assert announced.wait(PATIENCE)
        with RawPeer(receivers[1].port, NODE) as slow:
            slow.expect(FrameType.HELLO)
            slow.offer(header)
            assert slow.expect(FrameType.ANSWER)["have"] == 0
            slow.data(0, body[: 1 << 20])
            found = chain.by_node(1)["node-2"]
            assert found.delivered
            assert len(body) - (1 << 20) <= found.bytes_sent < len(body)
            slow.data(1 << 20, body[1 << 20 : 2 << 20])
            assert slow.expect(FrameType.ACK)["refused"]["code"] == "superseded"
        assert receivers[1].spool.path(global_id(), "").read_bytes() == body


def test_a_node_can_offer_nothing_but_what_was_announced_from_it(tmp_path: Path) -> None:
    body, other = vector_bytes(tmp_path, COUNT), vector_bytes(tmp_path, COUNT, seed=1)
    header = header_of(body)
    vector_bytes(tmp_path, COUNT)
    with logged() as log, forwarding_nodes(tmp_path, 3) as receivers, server_sender() as sender:
        with RawPeer(receivers[1].port, NODE) as early:
            early.expect_end("unknown_peer")
        announced = announcement(receivers[1])
        chain = ChainOfOffers(sender, ports_of(receivers), tmp_path / "v.npy", header.digest)
        chain.announce(1)
        assert announced.wait(PATIENCE)
        with RawPeer(receivers[1].port, Identity("node-3", Role.CLIENT)) as third:
            third.expect_end("unknown_peer")
        refused = {
            "another digest": (header_of(other), "not_announced"),
            "another size": (header.model_copy(update={"size": header.size + 4}), "not_announced"),
            "another round": (header_of(body, global_id(2)), "not_announced"),
            "another task": (header_of(body, global_id(1, "7" * 32)), "not_announced"),
            "metadata of its own": (header.model_copy(update={"meta": {"used_through": 3}}), "bad_metadata"),
            "a stop": (header_of(stop_body(), stop_id()), "not_permitted"),
            "a model to test": (
                header_of(b"x" * 70_000, FileId(kind=Kind.EVALUATE, task=TASK, round=1)),
                "not_permitted",
            ),
        }
        with RawPeer(receivers[1].port, NODE) as node:
            node.expect(FrameType.HELLO)
            for number, (what, (offered, code)) in enumerate(refused.items(), 1):
                inline = stop_body() if offered.id.kind is Kind.STOP else b""
                node.offer(offered, inline, transfer=number)
                assert node.expect(FrameType.ANSWER)["refused"]["code"] == code, what
        assert not receivers[1].spool.arrived(Kind.GLOBALPARAM)
        assert not chain.outcomes.all
        lines = log.named("file_refused")
        assert len(lines) == len(refused)
        assert {line["node"] for line in lines} == {"node-1"}


def test_bytes_that_are_not_those_announced_are_discarded_and_the_server_sends_all(tmp_path: Path) -> None:
    body, other = vector_bytes(tmp_path, COUNT), vector_bytes(tmp_path, COUNT, seed=1)
    vector_bytes(tmp_path, COUNT)
    with forwarding_nodes(tmp_path, 3) as receivers, server_sender() as sender:
        announced = announcement(receivers[1])
        chain = ChainOfOffers(sender, ports_of(receivers), tmp_path / "v.npy", header_of(body).digest)
        chain.announce(2, 1)
        assert announced.wait(PATIENCE)
        with RawPeer(receivers[1].port, NODE) as false:
            false.expect(FrameType.HELLO)
            false.offer(header_of(body))
            assert false.expect(FrameType.ANSWER)["have"] == 0
            for offset in range(0, len(other), 1 << 20):
                false.data(offset, other[offset : offset + (1 << 20)])
            assert false.expect(FrameType.ACK)["refused"]["code"] == "wrong_digest"
        found = chain.by_node(2)
        check_bytes = [receiver.spool.path(global_id(), "").read_bytes() == body for receiver in receivers[1:]]
    assert check_bytes == [True, True]
    assert found["node-2"].bytes_sent >= len(body)
    assert found["node-3"].delivered


@pytest.mark.parametrize(("accept", "pass_on"), [(True, False), (False, True), (False, False)])
def test_without_the_consent_of_both_owners_the_server_sends_all(tmp_path: Path, accept: bool, pass_on: bool) -> None:
    digest = model_file(tmp_path / "m.npy", COUNT)
    with forwarding_nodes(tmp_path, 2, accept=accept, pass_on=pass_on) as receivers, server_sender() as sender:
        chain = ChainOfOffers(sender, ports_of(receivers), tmp_path / "m.npy", digest)
        chain.announce(1, 0, seconds=0.5)
        found = chain.by_node(2)
        check_stored(receivers, (tmp_path / "m.npy").read_bytes())
    assert all(outcome.delivered and outcome.bytes_sent > 4 * COUNT for outcome in found.values())


def test_an_offer_that_is_cancelled_while_it_waits_ends_the_announcement(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, COUNT)
    with forwarding_nodes(tmp_path, 2) as receivers, RawPeer(receivers[1].port) as server:
        announced = announcement(receivers[1])
        server.expect(FrameType.HELLO)
        server.offer(header_of(body).model_copy(update={"meta": meta_for(1, ports_of(receivers))}))
        assert announced.wait(PATIENCE)
        server.send(encode(FrameType.CANCEL, transfer=1))
        server.offer(header_of(stop_body(), stop_id()), stop_body(), transfer=2)
        assert server.expect(FrameType.ACK).get("refused") is None, "the cancelled one is not answered"
        with RawPeer(receivers[1].port, NODE) as late:
            late.expect_end("unknown_peer")


def test_a_server_that_connects_anew_in_the_middle_waits_for_what_is_on_its_way(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, COUNT)
    half = len(body) // 2
    with forwarding_nodes(tmp_path, 2) as receivers, RawPeer(receivers[1].port) as first:
        announced = announcement(receivers[1])
        offer = header_of(body).model_copy(update={"meta": meta_for(1, ports_of(receivers))})
        first.expect(FrameType.HELLO)
        first.offer(offer)
        assert announced.wait(PATIENCE)
        with RawPeer(receivers[1].port, NODE) as node:
            node.expect(FrameType.HELLO)
            node.offer(header_of(body))
            assert node.expect(FrameType.ANSWER)["have"] == 0
            for offset in range(0, half, 1 << 20):
                node.data(offset, body[offset : min(half, offset + (1 << 20))])
            await_part(receivers[1], half)
            first.sock.close()
            announced.clear()
            with RawPeer(receivers[1].port) as second:
                second.expect(FrameType.HELLO)
                second.offer(offer)
                assert announced.wait(PATIENCE)
                for offset in range(half, len(body), 1 << 20):
                    node.data(offset, body[offset : offset + (1 << 20)])
                assert node.expect(FrameType.ACK).get("refused") is None
                assert second.expect(FrameType.ANSWER)["stored"]
        assert receivers[1].spool.path(global_id(), "").read_bytes() == body


def test_a_way_that_makes_no_sense_is_refused_with_the_offer(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, COUNT)
    with forwarding_nodes(tmp_path, 1) as receivers, RawPeer(receivers[0].port) as server:
        server.expect(FrameType.HELLO)
        for number, way in enumerate(
            (7, {}, {"seconds": 1, "successor": {"node": "n", "address": "a b", "port": 1}}), 1
        ):
            server.offer(header_of(body).model_copy(update={"meta": {"forwarding": way}}), transfer=number)
            assert server.expect(FrameType.ANSWER)["refused"]["code"] == "bad_metadata"


def test_a_model_leaves_this_machine_only_encrypted_unless_the_owner_allows_plaintext(tmp_path: Path) -> None:
    body = vector_bytes(tmp_path, COUNT)
    beyond = Successor(node="node-2", address="192.0.2.7", port=9002)
    with logged() as log, forwarding_nodes(tmp_path, 1) as receivers:
        way = Forwarding(successor=beyond, seconds=9).model_dump(mode="json", exclude_none=True)
        outcome = send_now(receivers[0], SERVER, global_id(), tmp_path / "v.npy", meta={"forwarding": way})
        (line,) = log.named("model_not_passed_on")
    assert outcome.bytes_sent > len(body)
    assert (line["node"], line["code"]) == ("node-2", "tls")


def test_forwarding_with_certificates_proves_both_names(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", COUNT)
    pki = Pki(tmp_path)
    for number in range(3):
        (tmp_path / name_of(number)).mkdir(exist_ok=True)
    with ExitStack() as stack:
        receivers = [
            stack.enter_context(forwarding_node(tmp_path, number, tls=pki.tls(name_of(number), Role.CLIENT)))
            for number in range(3)
        ]
        sender = stack.enter_context(Sender(SERVER, credentials=pki.credentials("server", Role.SERVER)))
        chain = ChainOfOffers(sender, ports_of(receivers), tmp_path / "m.npy", digest)
        chain.announce(2, 1, 0)
        found = chain.by_node(3)
        check_stored(receivers, (tmp_path / "m.npy").read_bytes())
    assert [found[name_of(number)].already_there for number in range(3)] == [False, True, True]
