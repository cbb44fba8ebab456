"""How the server sends one model to several nodes: who is told what, and what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from selectors import DefaultSelector
from typing import Any

from fedsim.config import ServerConfig
from fedsim.forwarding import Forwarding
from fedsim.forwarding_offer import ForwardingOffer
from fedsim.messages import EngineInfo, Hello
from fedsim.runtime.event_loop import EventLoop
from fedsim.server.broadcasts import Broadcasts
from fedsim.server.nodes import Nodes
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Spool
from fedsim.state_machines.forwarding import MIN_BYTES
from fedsim.wire.sender import Outcome, Peer, Status

TASK = "c" * 32
ALL = ForwardingOffer(accept=True, pass_on=True)
META = {"used_through": 1}


def model_of(round_number: int) -> FileId:
    return FileId(kind=Kind.GLOBALPARAM, task=TASK, round=round_number)


class RecordedOutbox:
    """Stands for the outbox: what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Peer, FileId, dict[str, Any]]] = []
        self.troubled = ""

    def trouble(self, peer: Peer) -> str:
        return "no connection" if peer.name in self.troubled else ""

    def send(self, peer: Peer, file: FileId, _source: Path, *, meta: dict[str, Any], digest: str) -> None:
        assert digest == "d" * 64
        self.sent.append((peer, file, meta))

    def cancel(self, unwanted: Callable[[FileId], bool]) -> None:
        self.sent = [one for one in self.sent if not unwanted(one[1])]


class Sending:
    """A server with nodes `a`, `b`, `c`, `d` that announced these offers."""

    def __init__(self, folder: Path, *, enabled: bool = True, **offers: ForwardingOffer) -> None:
        names = ("a", "b", "c", "d")
        spool = Spool(folder / "spool").open()
        nodes = [{"name": name, "port": 9000 + number} for number, name in enumerate(names)]
        config = ServerConfig.model_validate({"spool": spool.root, "nodes": nodes})
        for name in names:
            offer = offers.get(name, ALL)
            hello = Hello(node=name, version="1", sent_at=0, clients=1, engine=EngineInfo(), forwarding=offer)
            spool.path(FileId(kind=Kind.HELLO), name).write_text(hello.model_dump_json())
        known = Nodes(config, spool)
        known.scan()
        self.model = folder / "model.npy"
        with self.model.open("wb") as file:
            file.truncate(MIN_BYTES)
        self.outbox = RecordedOutbox()
        self.loop = EventLoop(DefaultSelector())
        self.broadcasts = Broadcasts(self.outbox, known, self.loop, lambda: enabled)  # type: ignore[arg-type]

    def send(self, round_number: int, names: str = "abcd") -> dict[str, Forwarding | None]:
        """Send a round's model; returns what each node learns of the way, in the order of sending."""
        self.outbox.sent.clear()
        for name in names:
            self.broadcasts.send(name, model_of(round_number), self.model, meta=META, digest="d" * 64)
        self.loop.run_once(time.monotonic())
        learns = {}
        for peer, file, meta in self.outbox.sent:
            assert file == model_of(round_number)
            assert {key: meta[key] for key in META} == META
            way = meta.get("forwarding")
            learns[peer.name] = None if way is None else Forwarding.model_validate(way)
        return learns

    def ended(self, seconds: float, *, already: str = "") -> None:
        """All nodes have it."""
        for peer, file, _ in list(self.outbox.sent):
            there = peer.name in already
            sent = 300 if there else MIN_BYTES
            self.broadcasts.transfer_ended(Outcome(peer, file, Status.DELIVERED, "", "", sent, seconds, there))

    def measured(self, round_number: int = 1) -> None:
        """The first model went directly, behind an uplink of 1 MiB/s."""
        assert self.send(round_number) == dict.fromkeys("abcd")
        self.ended(4 * MIN_BYTES / 2**20)


def test_each_node_of_a_chain_learns_of_its_neighbours_alone_the_last_one_first(tmp_path: Path) -> None:
    sending = Sending(tmp_path, c=ForwardingOffer(accept=True, pass_on=True, address="192.0.2.7", port=99))
    sending.measured()
    learns = sending.send(2)
    assert list(learns) == ["d", "c", "b", "a"]
    ways = {name: way.model_dump(exclude={"seconds"}) for name, way in learns.items() if way is not None}
    assert ways == {
        "a": {"predecessor": None, "successor": {"node": "b", "address": "127.0.0.1", "port": 9001}},
        "b": {"predecessor": "a", "successor": {"node": "c", "address": "192.0.2.7", "port": 99}},
        "c": {"predecessor": "b", "successor": {"node": "d", "address": "127.0.0.1", "port": 9003}},
        "d": {"predecessor": "c", "successor": None},
    }
    assert {16 <= way.seconds <= 20 for way in learns.values() if way is not None} == {True}


def test_a_node_whose_owner_allows_nothing_gets_the_model_directly(tmp_path: Path) -> None:
    sending = Sending(tmp_path, b=ForwardingOffer())
    sending.measured()
    learns = sending.send(2)
    assert learns["b"] is None
    assert learns["a"] is not None
    assert learns["a"].successor is not None
    assert learns["a"].successor.node == "c"


def test_a_node_that_the_server_does_not_reach_is_in_no_chain(tmp_path: Path) -> None:
    sending = Sending(tmp_path)
    sending.measured()
    sending.outbox.troubled = "a"
    learns = sending.send(2)
    assert learns["a"] is None
    assert learns["b"] is not None
    assert learns["b"].predecessor is None


def test_a_model_that_is_gone_by_then_is_left_to_the_outbox(tmp_path: Path) -> None:
    sending = Sending(tmp_path)
    sending.model.unlink()
    assert sending.send(1) == dict.fromkeys("abcd")


def test_unless_server_yml_allows_it_every_model_is_sent_at_once_and_directly(tmp_path: Path) -> None:
    sending = Sending(tmp_path, enabled=False)
    sending.broadcasts.send("a", model_of(1), sending.model, meta=META, digest="d" * 64)
    assert len(sending.outbox.sent) == 1
    for number in (2, 3, 4):
        assert sending.send(number) == dict.fromkeys("abcd")
        sending.ended(9.0)


def test_a_node_that_needed_the_server_is_left_out_of_the_next_chain(tmp_path: Path) -> None:
    sending = Sending(tmp_path)
    sending.measured()
    sending.send(2)
    sending.ended(5.0, already="bd")
    learns = sending.send(3)
    assert learns["c"] is None
    assert learns["b"] is not None
    assert learns["b"].successor is not None
    assert learns["b"].successor.node == "d"


def test_a_slower_chain_is_not_used_again(tmp_path: Path) -> None:
    sending = Sending(tmp_path)
    sending.measured()
    sending.send(2)
    sending.ended(17.0, already="bcd")
    assert sending.send(3) == dict.fromkeys("abcd")


def test_what_is_cancelled_before_its_turn_is_not_sent_nor_measured(tmp_path: Path) -> None:
    sending = Sending(tmp_path)
    sending.broadcasts.send("a", model_of(1), sending.model, meta=META, digest="d" * 64)
    sending.broadcasts.cancel(lambda file: file.task == TASK)
    sending.loop.run_once(time.monotonic())
    assert sending.outbox.sent == []
    sending.send(2)
    under_way = list(sending.outbox.sent)
    sending.broadcasts.cancel(lambda file: file.round == 2)
    sending.outbox.sent = under_way
    sending.ended(9.0)
    assert sending.broadcasts.meter.together is None
