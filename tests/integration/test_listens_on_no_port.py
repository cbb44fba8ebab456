"""A node that listens on no port: it receives over the connection that its daemon opens to the server's receiver."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from platform_support import DIGITS, Platform
from transfer_support import (
    HELLO,
    NODE,
    PATIENCE,
    SERVER,
    TASK,
    Outcomes,
    files_in,
    global_id,
    hello_body,
    model_file,
    node_config,
    peer_of,
    receiving,
    server_config,
    stop_body,
    stop_id,
    want_all,
)

from fedsim.inbox.counters import Counters
from fedsim.inbox.spool_inbox import SpoolInbox
from fedsim.receiver.service import Receiver
from fedsim.runtime.outbox import Outbox
from fedsim.spool.layout import Spool
from fedsim.spool.peer_queue import OUTGOING, PeerQueue, sent_entries
from fedsim.testing.local_cluster import NodeSpec
from fedsim.wire import Outcome, Peer, Sender
from fedsim.wire.client.transfer import Status

ABSENT = Peer("node-1")


def await_ended(outbox: Outbox, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        assert select.select([outbox, outbox.sent_elsewhere], [], [], PATIENCE)[0], outcomes
        outcomes += outbox.ended()
    return outcomes


@contextmanager
def outbox_of(receiver: Receiver) -> Iterator[Outbox]:
    """What the daemon of the same host sends."""
    outbox = Outbox.open(SERVER, None, receiver.spool)
    try:
        yield outbox
    finally:
        outbox.close()


@contextmanager
def node(folder: Path, receiver: Receiver, port: int | None = None) -> Iterator[Spool]:
    """A node that opens a connection with its hello, and receives on it."""
    config = node_config(folder)
    spool = Spool(config.spool).open()
    want_all(spool)
    inbox = SpoolInbox(config, spool, Counters())
    inbox.open()
    with Sender(NODE, inbox=inbox) as sender:
        hello = Outcomes()
        sender.send(peer_of(receiver, port), HELLO, hello_body("node-1"), on_done=hello)
        assert hello.wait(1)[0].delivered
        yield spool
        sender.check()
    inbox.close()


def test_what_is_queued_is_sent_once_the_node_connects_and_from_then_on_at_once(tmp_path: Path) -> None:
    model_file(tmp_path / "m.npy", 500_000)
    with receiving(server_config(tmp_path / "server")) as receiver, outbox_of(receiver) as outbox:
        outbox.send(ABSENT, global_id(), tmp_path / "m.npy", meta={"final": False})
        with node(tmp_path / "node", receiver) as spool:
            (outcome,) = await_ended(outbox, 1)
            assert (outcome.peer, outcome.file_id, outcome.status) == (ABSENT, global_id(), Status.DELIVERED)
            assert outcome.bytes_sent > 2_000_000
            assert spool.path(global_id(), "server").read_bytes() == (tmp_path / "m.npy").read_bytes()
            outbox.send(ABSENT, stop_id(), stop_body())
            assert [outcome.file_id for outcome in await_ended(outbox, 1)] == [stop_id()]
            assert receiver.counts()["files_sent"] == 2
            assert PeerQueue(receiver.spool.root, "node-1").entries() == sent_entries(receiver.spool.root) == []


def test_a_refusal_reaches_the_daemon_that_queued_the_file(tmp_path: Path) -> None:
    with (
        receiving(server_config(tmp_path / "server")) as receiver,
        outbox_of(receiver) as outbox,
        node(tmp_path / "node", receiver),
    ):
        outbox.send(ABSENT, stop_id(), b'{"task": "another"}')
        outbox.send(ABSENT, global_id(), tmp_path / "none.npy")
        codes = {outcome.file_id: (outcome.status, outcome.code) for outcome in await_ended(outbox, 2)}
    assert codes == {
        stop_id(): (Status.REFUSED, "bad_content"),
        global_id(): (Status.REFUSED, "source_missing"),
    }


def test_what_is_cancelled_is_not_sent(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path / "server")) as receiver, outbox_of(receiver) as outbox:
        outbox.send(ABSENT, stop_id(), stop_body())
        outbox.cancel(lambda file: file == stop_id())
        outbox.send(ABSENT, stop_id("8" * 32), stop_body("8" * 32))
        with node(tmp_path / "node", receiver) as spool:
            assert [outcome.file_id.task for outcome in await_ended(outbox, 1)] == ["8" * 32]
            assert [name for name in files_in(spool.root) if name.startswith("stop")] == [f"stop/{'8' * 32}.json"]


def test_what_nobody_fetches_in_time_is_given_up(tmp_path: Path) -> None:
    with receiving(server_config(tmp_path)) as receiver, outbox_of(receiver) as outbox:
        outbox.send(ABSENT, stop_id(), stop_body(), give_up_after=0.01)
        time.sleep(0.02)
        outbox.check()
        assert [outcome.status for outcome in outbox.ended()] == [Status.GAVE_UP]
        assert PeerQueue(receiver.spool.root, "node-1").entries() == []


def test_a_newer_connection_of_the_node_replaces_a_dead_one(tmp_path: Path) -> None:
    with (
        receiving(server_config(tmp_path / "server")) as receiver,
        outbox_of(receiver) as outbox,
        node(tmp_path / "older", receiver),
        node(tmp_path / "newer", receiver) as spool,
    ):
        outbox.send(ABSENT, stop_id(), stop_body())
        assert await_ended(outbox, 1)[0].delivered
        assert f"stop/{TASK}.json" in files_in(spool.root)


def test_a_node_that_listens_is_sent_files_by_the_daemon_alone(tmp_path: Path) -> None:
    """The node also accepts files on a connection of its own: nothing is sent there, and nothing is queued."""
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving(server_config(tmp_path / "server")))
        outbox = stack.enter_context(outbox_of(receiver))
        stack.enter_context(node(tmp_path / "dials", receiver))
        listening = stack.enter_context(receiving(node_config(tmp_path / "listens")))
        count = 50
        for number in range(count):
            outbox.send(peer_of(listening), stop_id(f"{number:032x}"), stop_body(f"{number:032x}"))
        outcomes = await_ended(outbox, count)
        assert all(outcome.delivered and not outcome.already_there for outcome in outcomes)
        assert len([name for name in files_in(tmp_path / "listens" / "spool") if name.startswith("stop/")]) == count
        assert not [name for name in files_in(tmp_path / "dials" / "spool") if name.startswith("stop/")]
        assert not [name for name in files_in(receiver.spool.root) if name.startswith(OUTGOING)]


# ------------------------------------------------------------ with real processes


def cluster(folder: Path, *, listens: bool) -> Platform:
    data = folder / "data"
    data.mkdir(parents=True)
    settings: dict[str, Any] = {"clients": 50, "announce_seconds": 2}
    nodes = [
        NodeSpec("node-a", data, [DIGITS], settings),
        NodeSpec("node-b", data, [DIGITS], settings, listens=listens),
    ]
    return Platform(folder, nodes, server={"node_timeout_seconds": 8})


LONGER = {"local_epochs": 5, "num_rounds": 6}


@pytest.mark.timeout(400)
def test_a_task_ends_with_the_same_bytes_also_when_processes_are_killed_in_a_round(tmp_path: Path) -> None:
    with cluster(tmp_path / "all-listen", listens=True) as lab:
        expected = lab.completed(lab.submit(**LONGER)).digest
    with cluster(tmp_path / "one-dials", listens=False) as lab:
        assert "node-b-receiver" not in lab.processes
        number = lab.submit(**LONGER)
        for at, victim in ((2, "node-b"), (3, "receiver"), (4, "server")):
            lab.await_round(number, at)
            lab.kill(victim)
            lab.start(victim)
        assert lab.completed(number).digest == expected
        for host in ("server", "node-a", "node-b"):
            lab.await_gone(lab.folder / host / "outgoing", "*/*.json")
