from __future__ import annotations

import functools
import itertools
import os
import random
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from inotify_simple import INotify, flags
from transfer_support import (
    HELLO,
    NODE,
    PATIENCE,
    RECEIVER,
    SERVER,
    TASK,
    Outcomes,
    Proxy,
    files_in,
    global_id,
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
    want_all,
    write_config,
)

from fedsim.errors import BadInput, Unavailable
from fedsim.inbox.counters import Counters
from fedsim.inbox.spool_inbox import SpoolInbox
from fedsim.receiver.incoming_connection import connection_limits
from fedsim.runtime.outbox import Outbox
from fedsim.spool.clear import clear_round
from fedsim.spool.files import FileHeader, FileId, Kind, Role
from fedsim.spool.layout import Spool, read_metadata
from fedsim.spool.npy import hash_file, open_vector
from fedsim.spool.watch import Watch
from fedsim.wire import Identity, Outcome, Peer
from fedsim.wire.body import FileBody
from fedsim.wire.protocol.events import OfferEnded
from fedsim.wire.protocol.outgoing import Outgoing
from fedsim.wire.sender import Sender, SenderFailedError, Status
from fedsim.wire.transport.reactor import Reactor
from fedsim.wire.transport.stream import PlainStream, tune
from fedsim.wire.transport.stream_connection import StreamConnection

MIB = 1 << 20


def test_a_file_arrives_completely_and_wakes_its_watchers(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", 500_000)
    with receiving(node_config(tmp_path)) as receiver, Sender(SERVER) as sender:
        watch = Watch(receiver.spool.folder(Kind.GLOBALPARAM))
        outcome = sender.send_and_wait(
            peer_of(receiver), global_id(), tmp_path / "m.npy", meta={"final": True}, give_up_after=PATIENCE
        )
        assert outcome.delivered
        assert not outcome.already_there
        assert 2_000_000 < outcome.bytes_sent < 2_010_000
        readable, _, _ = select.select([watch], [], [], PATIENCE)
        assert readable
        (arrived,) = receiver.spool.among(watch.drain())
        watch.close()
        assert receiver.spool.arrived(Kind.GLOBALPARAM, TASK, 1) == [arrived]
        assert np.array_equal(open_vector(arrived.path), open_vector(tmp_path / "m.npy"))
        told = arrived.metadata()
        assert (told.sender, told.digest, told.meta) == ("server", digest, {"final": True})
        assert files_in(receiver.spool.incoming) == []


def test_a_file_that_is_there_costs_no_body_and_new_metadata_is_taken_over(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", 500_000)
    with receiving(node_config(tmp_path)) as receiver, Sender(SERVER) as sender:
        for meta in ({"used_through": 1}, {"used_through": 1}, {"used_through": 2}):
            outcome = sender.send_and_wait(
                peer_of(receiver), global_id(), tmp_path / "m.npy", meta=meta, digest=digest, give_up_after=PATIENCE
            )
        assert outcome.already_there
        assert outcome.bytes_sent < 500
        assert read_metadata(receiver.spool.path(global_id(), "server")).meta == {"used_through": 2}
        assert receiver.counts()["connections"] == 1


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 40))])
def test_a_transfer_that_is_cut_again_and_again_resumes(tmp_path: Path, seed: int) -> None:
    random_source = random.Random(seed)
    digest = model_file(tmp_path / "m.npy", 2_000_000)
    cuts = [random_source.randint(1, 3_000_000) for _ in range(4)]
    with receiving(node_config(tmp_path)) as receiver:
        with Proxy(receiver.port, iter(cuts)) as proxy, Sender(SERVER) as sender:
            outcome = sender.send_and_wait(
                peer_of(receiver, proxy.port), global_id(), tmp_path / "m.npy", digest=digest, give_up_after=PATIENCE
            )
        assert outcome.delivered
        assert len(proxy.carried) > 1
        assert hash_file(receiver.spool.path(global_id(), "server")) == digest
        # What was lost is at most what lay in the buffers of sockets and proxy when each cut came.
        assert receiver.counts()["bytes_received"] < 8_000_000 + 100_000


def test_a_stop_overtakes_a_large_body(tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    model_file(path, 1)
    count = 50 * MIB
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    os.truncate(path, path.stat().st_size + count * 4)
    digest = hash_file(path)
    outcomes = Outcomes()
    with receiving(node_config(tmp_path)) as receiver, Sender(SERVER) as sender:
        peer = peer_of(receiver)
        sender.send_and_wait(peer, stop_id("0" * 32), stop_body("0" * 32), give_up_after=PATIENCE)
        sender.send(peer, global_id(), path, digest=digest, on_done=outcomes)
        sender.send(peer, stop_id(), stop_body(), on_done=outcomes)
        first, second = outcomes.wait(2)
        assert (first.file_id, second.file_id) == (stop_id(), global_id())
        assert first.delivered
        assert second.delivered
        assert first.seconds < second.seconds / 2
        assert receiver.counts()["connections"] == 1


def test_many_nodes_send_at_once(tmp_path: Path) -> None:
    outcomes = Outcomes()
    with receiving(server_config(tmp_path)) as receiver:
        senders = [Sender(Identity(f"node-{number}", Role.CLIENT)).open() for number in range(1, 9)]
        for number, sender in enumerate(senders):
            model_file(tmp_path / f"{number}.npy", 300_000, number)
            for chunk in range(3):
                file_id = FileId(kind=Kind.LOCALPARAM, task=TASK, round=1, chunk=chunk)
                source = tmp_path / f"{number}.npy"
                sender.send(peer_of(receiver), file_id, source, meta=meta_of(file_id), on_done=outcomes)
        assert all(outcome.delivered for outcome in outcomes.wait(24))
        for sender in senders:
            sender.close()
        arrived = receiver.spool.arrived(Kind.LOCALPARAM, TASK, 1)
        assert len(arrived) == 24
        for item in arrived:
            sent = tmp_path / f"{int(str(item.sender)[-1]) - 1}.npy"
            assert item.path.read_bytes() == sent.read_bytes()


class _End:
    """A bare connection on its own reactor, as a node that lives on the connection it opened would have it."""

    def __init__(
        self,
        sock: socket.socket,
        me: Identity,
        folder: Path,
        offer_ended: Callable[[OfferEnded], None],
        *,
        initiator: bool,
    ) -> None:
        config = node_config(folder) if me.role is Role.CLIENT else server_config(folder)
        spool = Spool(folder / "spool").open()
        want_all(spool)
        self.inbox = SpoolInbox(config, spool, Counters())
        self.reactor = Reactor(me.name, 2)
        tune(sock)
        self.connection = StreamConnection(
            PlainStream(sock),
            me,
            connection_limits(config.limits),
            initiator=initiator,
            judge=lambda _: None,
            welcome=self.inbox.welcome,
            offer_ended=offer_ended,
            inbox=self.inbox,
            run=self.reactor.run,
            wake=lambda: self.reactor.wake(self),
        )
        self.deadline = None
        self.interest = self.connection.interest
        self.reactor.start()

    def handle(self, _: int) -> bool:
        return self.connection.handle(self.reactor.buffer)


def test_both_sides_of_one_connection_send_files(tmp_path: Path) -> None:
    model_file(tmp_path / "m.npy", 1_000_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    done: list[str] = []
    both = threading.Event()

    def ended(end: OfferEnded) -> None:
        done.append(f"{end.outgoing.header.id.kind} {end.refused}")
        if len(done) == 2:
            both.set()

    node = _End(dialled, Identity("node-1", Role.CLIENT), tmp_path / "node", ended, initiator=True)
    server = _End(accepted, SERVER, tmp_path / "server", ended, initiator=False)

    def offer(end: _End, file_id: FileId) -> FileBody:
        source = FileBody(tmp_path / "m.npy")
        header = FileHeader(id=file_id, size=source.size, digest=source.digest(), meta=meta_of(file_id))
        end.connection.offer(Outgoing(header, source))
        return source

    sources = [offer(node, FileId(kind=Kind.LOCALPARAM, task=TASK, round=1, chunk=0)), offer(server, global_id())]
    for end in (node, server):
        end.reactor.add(end)
    assert both.wait(PATIENCE)
    assert sorted(done) == ["globalparam None", "localparam None"]
    for end in (node, server):
        end.reactor.close()
        end.connection.close("closed", "the test ends", retry=True)
    for source in sources:
        source.close()
    assert len(Spool(tmp_path / "node" / "spool").open().arrived(Kind.GLOBALPARAM)) == 1
    assert len(Spool(tmp_path / "server" / "spool").open().arrived(Kind.LOCALPARAM)) == 1


class _Process:
    """A real fedsim-receiver; ready when it says so to systemd's socket."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._folder = folder
        want_all(Spool(folder / "spool").open())
        self.config = write_config(folder, node_config(folder, listen={"port": self.port}))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.end(signal.SIGKILL)

    def start(self) -> None:
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = self._folder / "notify"
        path.unlink(missing_ok=True)
        notify.bind(str(path))
        notify.settimeout(PATIENCE)
        self.process = subprocess.Popen(
            [*RECEIVER, "--config", str(self.config)],
            env={**os.environ, "NOTIFY_SOCKET": str(path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        while "READY=1" not in notify.recv(4096).decode():
            pass
        notify.close()

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


def wait_until_written(folder: Path, size: int) -> None:
    """Until the only file in `folder` has at least `size` bytes."""
    with INotify() as notify:
        notify.add_watch(folder, flags.MODIFY)
        while max((path.stat().st_size for path in folder.iterdir()), default=0) < size:
            notify.read(timeout=int(PATIENCE * 1000))


def test_a_receiver_killed_in_the_middle_continues_where_it_was(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", 8 * MIB)
    with _Process(tmp_path) as receiver:

        def kill_and_restart() -> None:
            wait_until_written(tmp_path / "spool" / ".incoming", 11 * MIB)
            receiver.end(signal.SIGKILL)
            receiver.start()

        with Proxy(receiver.port, iter([12 * MIB]), at_cut=kill_and_restart) as proxy, Sender(SERVER) as sender:
            peer = Peer("node-1", "127.0.0.1", proxy.port)
            outcome = sender.send_and_wait(peer, global_id(), tmp_path / "m.npy", digest=digest, give_up_after=PATIENCE)
        assert outcome.delivered
        code, log = receiver.end(signal.SIGTERM)
        assert code == 0, log
        assert "file_received" in log
    assert hash_file(Spool(tmp_path / "spool").open().path(global_id(), "server")) == digest
    # The second life got no more than what the first had not written.
    assert proxy.carried[-1] < 22 * MIB


def test_a_peer_that_is_not_there_yet_gets_its_file_when_it_comes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    outcomes = Outcomes()
    with Sender(SERVER) as sender:
        peer = Peer("node-1", "localhost", port)
        sender.send(peer, stop_id(), stop_body(), on_done=outcomes)
        with pytest.raises(Unavailable, match="refused"):
            sender.send_and_wait(peer, stop_id("1" * 32), stop_body("1" * 32), give_up_after=2)
        with receiving(node_config(tmp_path, listen={"port": port})):
            assert outcomes.wait(1)[0].delivered


def test_giving_up_and_cancelling_end_a_transfer_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Sender(SERVER) as sender:
        peer = Peer("node-1", "127.0.0.1", silent.getsockname()[1])
        outcomes = Outcomes()
        first = sender.send(peer, stop_id(), stop_body(), on_done=outcomes)
        first.cancel()
        first.cancel()
        assert outcomes.wait(1)[0].status is Status.CANCELLED
        sender.send(peer, stop_id(), stop_body(), give_up_after=0.05, on_done=outcomes)
        assert outcomes.wait(2)[1].status is Status.GAVE_UP
        sender.send(peer, stop_id(), stop_body(), on_done=outcomes)
    assert [outcome.status for outcome in outcomes.wait(3)] == [Status.CANCELLED, Status.GAVE_UP, Status.CANCELLED]
    with pytest.raises(SenderFailedError):
        sender.send(peer, stop_id(), stop_body(), on_done=outcomes)


def test_cancelling_in_the_middle_leaves_nothing_and_the_connection_continues(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", 16 * MIB)
    reached, go_on = threading.Event(), threading.Event()
    with receiving(node_config(tmp_path)) as receiver:

        def hold() -> None:
            reached.set()
            go_on.wait(PATIENCE)

        with Proxy(receiver.port, iter([4 * MIB]), at_cut=hold) as proxy, Sender(SERVER) as sender:
            outcomes = Outcomes()
            peer = peer_of(receiver, proxy.port)
            transfer = sender.send(peer, global_id(), tmp_path / "m.npy", digest=digest, on_done=outcomes)
            assert reached.wait(PATIENCE)
            transfer.cancel()
            assert outcomes.wait(1)[0].status is Status.CANCELLED
            go_on.set()
            assert sender.send_and_wait(peer, stop_id(), stop_body(), give_up_after=PATIENCE).delivered
        assert files_in(receiver.spool.folder(Kind.GLOBALPARAM)) == []


def test_a_peer_with_another_name_gets_nothing(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path)) as receiver, Sender(SERVER) as sender:
        peer = Peer("node-7", "127.0.0.1", receiver.port)
        with pytest.raises(Unavailable, match="says that it is node-1"):
            sender.send_and_wait(peer, stop_id(), stop_body(), give_up_after=3)
        assert files_in(receiver.spool.root) == []


class Troubles:
    """Collects what a sender tells of its peers, and lets a test wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.all: list[str] = []

    def __call__(self, _: Peer, trouble: str) -> None:
        with self._changed:
            self.all.append(trouble)
            self._changed.notify_all()

    def wait(self, count: int) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, PATIENCE), f"only {self.all}"
            return list(self.all)


def test_who_refuses_the_connection_gets_its_files_when_it_is_set_right(tmp_path: Path) -> None:
    wrong = node_config(tmp_path, peers=[{"name": "another", "role": "server"}])
    troubles, outcomes = Troubles(), Outcomes()
    with receiving(wrong) as receiver, Sender(SERVER, on_trouble=troubles) as sender:
        sender.send(peer_of(receiver), stop_id(), stop_body(), on_done=outcomes)
        (trouble,) = troubles.wait(1)
        assert trouble.startswith("the connection was refused: server server is not a peer of node-1")
        with pytest.raises(Unavailable, match="not a peer of node-1"):
            sender.send_and_wait(peer_of(receiver), global_id(), stop_body(), give_up_after=2)
        receiver.reload(node_config(tmp_path))
        assert outcomes.wait(1)[0].delivered
        assert troubles.wait(2) == [trouble, ""], "each change is told once, however often it was tried"


def test_a_connection_that_loses_its_permission_ends_no_file(tmp_path: Path) -> None:
    troubles, outcomes = Troubles(), Outcomes()
    with receiving(node_config(tmp_path)) as receiver, Sender(SERVER, on_trouble=troubles) as sender:
        assert sender.send_and_wait(peer_of(receiver), stop_id(), stop_body(), give_up_after=PATIENCE).delivered
        receiver.reload(node_config(tmp_path, peers=[{"name": "another", "role": "server"}]))
        sender.send(peer_of(receiver), stop_id("1" * 32), stop_body("1" * 32), on_done=outcomes)
        assert "server server is not a peer of node-1" in troubles.wait(1)[0]
        receiver.reload(node_config(tmp_path))
        assert outcomes.wait(1)[0].delivered
        assert troubles.wait(2)[1] == ""


def test_a_foreign_program_on_the_port_is_waited_out_and_named(tmp_path: Path) -> None:
    troubles, outcomes = Troubles(), Outcomes()
    with socket.create_server(("127.0.0.1", 0)) as foreign, Sender(SERVER, on_trouble=troubles) as sender:
        port = int(foreign.getsockname()[1])
        sender.send(Peer("node-1", "127.0.0.1", port), stop_id(), stop_body(), on_done=outcomes)
        with foreign.accept()[0] as connection:
            connection.sendall(b"220 mail.example ESMTP ready, and what can I do for you?\r\n")
            assert troubles.wait(1) == ["the connection was refused: this is not a fedsim connection"]
        foreign.close()
        with receiving(node_config(tmp_path, listen={"port": port})):
            assert outcomes.wait(1)[0].delivered


def ended(outbox: Outbox, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        assert select.select([outbox], [], [], PATIENCE)[0]
        outcomes += outbox.ended()
    return outcomes


def test_what_is_on_its_way_to_an_old_address_goes_to_the_new_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere, receiving(node_config(tmp_path)) as receiver:
        outbox = Outbox.open(SERVER, None, Spool(tmp_path / "outbox").open())
        old, new = peer_of(receiver, int(elsewhere.getsockname()[1])), peer_of(receiver)
        outbox.send(old, stop_id(), stop_body())
        outbox.redirect(old, new)
        outcomes = ended(outbox, 1)
        outbox.close()
        assert [(outcome.peer, outcome.delivered) for outcome in outcomes] == [(new, True)]


def test_of_a_file_that_changes_a_peer_that_was_away_gets_the_newest_alone(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as nobody,
        closing(Outbox.open(NODE, None, Spool(tmp_path / "outbox").open())) as outbox,
    ):
        port = int(nobody.getsockname()[1])
        peer = Peer("server", "127.0.0.1", port)
        for number in (1, 2, 3):
            outbox.send_newest(peer, HELLO, hello_body("node-1", number))
        nobody.close()
        with receiving(server_config(tmp_path, listen={"port": port})) as receiver:
            assert [outcome.delivered for outcome in ended(outbox, 1)] == [True]
            assert receiver.spool.path(HELLO, "node-1").read_bytes() == hello_body("node-1", 3)
            assert receiver.counts()["files_stored"] == 1


def test_a_file_that_changes_while_the_peer_makes_it_durable_follows_and_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        begun.set()
        assert released.wait(PATIENCE)
        fsync(descriptor)

    with (
        receiving(server_config(tmp_path)) as receiver,
        closing(Outbox.open(NODE, None, Spool(tmp_path / "outbox").open())) as outbox,
    ):
        monkeypatch.setattr(os, "fsync", slow)
        outbox.send_newest(peer_of(receiver), HELLO, hello_body("node-1", 1))
        assert begun.wait(PATIENCE)
        outbox.send_newest(peer_of(receiver), HELLO, hello_body("node-1", 2))
        outbox.send(peer_of(receiver), HELLO.model_copy(update={"kind": Kind.STOP, "task": TASK}), stop_body())
        (stop,) = ended(outbox, 1)  # refused, so that whatever was to be said before has been said
        assert stop.status is Status.REFUSED
        released.set()
        assert [outcome.delivered for outcome in ended(outbox, 2)] == [True, True]
        assert receiver.spool.path(HELLO, "node-1").read_bytes() == hello_body("node-1", 2)
        assert receiver.counts()["files_refused"] == 1


@pytest.mark.parametrize("after", range(6))
def test_an_update_whose_round_is_cleared_while_it_becomes_durable_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    fsync, count = os.fsync, itertools.count()
    with receiving(server_config(tmp_path)) as receiver:

        def cleared_meanwhile(descriptor: int) -> None:
            fsync(descriptor)
            if next(count) == after:
                clear_round(receiver.spool, Kind.LOCALPARAM, TASK, 1)

        monkeypatch.setattr(os, "fsync", cleared_meanwhile)
        model_file(tmp_path / "u.npy", 1000)
        assert send_now(receiver, NODE, local_id(), tmp_path / "u.npy").delivered
        assert "files_refused" not in receiver.counts()
        assert next(count) > after, "it was cleared in between"


def test_a_wrong_digest_is_refused_after_a_few_tries(tmp_path: Path) -> None:
    model_file(tmp_path / "m.npy", 100_000)
    with receiving(node_config(tmp_path)) as receiver:
        outcome = send_now(receiver, SERVER, global_id(), tmp_path / "m.npy", digest="0" * 64)
        assert (outcome.status, outcome.code) == (Status.REFUSED, "wrong_digest")
        assert files_in(receiver.spool.root) == []
        assert receiver.counts()["refused_wrong_digest"] == 3


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path)) as receiver:
        outcome = send_now(receiver, SERVER, global_id(), tmp_path / "none.npy")
        assert outcome.code == "source_missing"
        assert "none.npy" in outcome.message


def test_a_source_that_shrinks_is_refused_and_harms_no_other_file(tmp_path: Path) -> None:
    digest = model_file(tmp_path / "m.npy", 8 * MIB)
    with receiving(node_config(tmp_path)) as receiver:
        shrink = functools.partial(os.truncate, tmp_path / "m.npy", MIB)
        with Proxy(receiver.port, iter([2 * MIB]), at_cut=shrink) as proxy, Sender(SERVER) as sender:
            outcomes = Outcomes()
            peer = peer_of(receiver, proxy.port)
            sender.send(peer, global_id(), tmp_path / "m.npy", digest=digest, on_done=outcomes)
            outcome = outcomes.wait(1)[0]
            assert (outcome.status, outcome.code) == (Status.REFUSED, "source_changed")
            assert sender.send_and_wait(peer, stop_id(), stop_body(), give_up_after=PATIENCE).delivered


def test_metadata_that_is_not_json_fails_where_it_was_given(tmp_path: Path) -> None:
    with Sender(SERVER) as sender:
        for meta in ({"x": float("nan")}, {"x": tmp_path}):
            with pytest.raises(BadInput, match="globalparam"):
                sender.send(Peer("n", "127.0.0.1", 1), global_id(), b"", meta=meta, on_done=print)
