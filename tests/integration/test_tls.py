"""Certificates while daemons run: they are replaced without a failed transfer, and revoked without delay."""

from __future__ import annotations

import re
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tls_support import Pki, ends_in, logged, replace
from transfer_support import (
    HELLO,
    NODE,
    PATIENCE,
    RECEIVER,
    SERVER,
    TASK,
    Outcomes,
    files_in,
    global_id,
    hello_body,
    local_id,
    meta_of,
    model_file,
    node_config,
    peer_of,
    receiving,
    server_config,
    stop_body,
    stop_id,
    want_all,
    write_config,
)

from fedsim.config import ReceiverConfig
from fedsim.errors import ConfigError, Unavailable
from fedsim.runtime.outbox import Outbox
from fedsim.spool.files import Role
from fedsim.spool.layout import Spool
from fedsim.spool.npy import hash_file
from fedsim.testing.ports import free_port
from fedsim.wire import Identity, Peer
from fedsim.wire.protocol.frames import FrameType, HelloHeader, encode
from fedsim.wire.sender import Outcome, Sender, Status
from fedsim.wire.tls import Credentials

NODES = [Identity(f"node-{number}", Role.CLIENT) for number in (1, 2, 3)]


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


class ReceiverProcess:
    """`fedsim-receiver` as a process, whose log can be awaited."""

    def __init__(self, config: ReceiverConfig, folder: Path) -> None:
        self.path = write_config(folder, config)
        self._log: list[str] = []
        self._changed = threading.Condition()
        command = [*RECEIVER, "--config", str(self.path)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port = int(self.wait("listening")[0].split("port=")[1].split()[0])
        self.wait(" ready ")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._log.append(re.sub(r"\x1b\[\d*m", "", line))
                self._changed.notify_all()

    def lines(self, words: str) -> list[str]:
        return [line for line in list(self._log) if words in line]

    def wait(self, words: str, count: int = 1) -> list[str]:
        with self._changed:
            there = self._changed.wait_for(lambda: len(self.lines(words)) >= count, PATIENCE)
            assert there, f"no {words!r} in {''.join(self._log)}"
        return self.lines(words)

    def reload(self) -> None:
        count = len(self.lines("reload"))
        self.process.send_signal(signal.SIGHUP)
        self.wait("reload", count + 1)

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def running(config: ReceiverConfig, folder: Path) -> Iterator[ReceiverProcess]:
    want_all(Spool(config.spool).open())
    receiver = ReceiverProcess(config, folder)
    try:
        yield receiver
    finally:
        receiver.close()


def ended(outbox: Outbox) -> list[Outcome]:
    """The next outcomes that it tells."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        select.select([outbox], [], [], PATIENCE)
        if outcomes := outbox.ended():  # else it has told of a trouble
            return outcomes
    pytest.fail("nothing has ended")


class Connection:
    """A node's connection to a receiver, made by hand: it says who it is, and then nothing."""

    def __init__(self, pki: Pki, port: int, identity: Identity = NODE, **how: Any) -> None:
        tls = pki.tls(identity.name, identity.role, **how)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(tls.authority)
        context.load_cert_chain(tls.certificate, tls.key)
        self.sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port), PATIENCE))
        hello = HelloHeader(name=identity.name, role=identity.role, versions=(1,), max_header_bytes=4096)
        self.sock.sendall(encode(FrameType.HELLO, hello))
        assert b'"name":"server"' in self.sock.recv(65536)

    def rest(self) -> bytes:
        """What comes until the other side closes."""
        told = b""
        with self.sock:
            while data := self.sock.recv(65536):
                told += data
        return told


# ---------------------------------------------------------------- good connections


def test_files_travel_in_tls_and_the_certificate_is_the_name(tmp_path: Path, pki: Pki) -> None:
    digest = model_file(tmp_path / "m.npy", 2_000_000)
    tls = pki.tls("node-1", Role.CLIENT)
    with receiving(node_config(tmp_path, tls=tls.model_dump())) as receiver:
        peer = peer_of(receiver)
        with Sender(SERVER, credentials=pki.credentials("server", Role.SERVER)) as sender:
            for _ in range(2):
                outcome = sender.send_and_wait(
                    peer, global_id(), tmp_path / "m.npy", digest=digest, give_up_after=PATIENCE
                )
            assert outcome.already_there
        assert hash_file(receiver.spool.path(global_id(), "server")) == digest
        pretender = Sender(SERVER, credentials=pki.credentials("node-2", Role.CLIENT))
        with pretender as sender, pytest.raises(Unavailable, match="certificate is for client node-2"):
            sender.send_and_wait(peer, stop_id(), stop_body(), give_up_after=2)


def test_a_list_of_what_is_revoked_is_not_needed(tmp_path: Path, pki: Pki) -> None:
    tls = pki.tls("server", Role.SERVER).model_copy(update={"revoked": None})
    with (
        receiving(server_config(tmp_path, tls=tls.model_dump())) as receiver,
        Sender(NODE, credentials=pki.credentials("node-1", Role.CLIENT)) as sender,
    ):
        assert sender.send_and_wait(peer_of(receiver), HELLO, hello_body("node-1"), give_up_after=PATIENCE).delivered


# ---------------------------------------------------------------- rotation


class Load:
    """Nodes that send all the time: announcements, and models of a megabyte."""

    def __init__(self, pki: Pki, port: int, folder: Path) -> None:
        self._pki = pki
        self._peer = Peer("server", "127.0.0.1", port)
        self.outcomes = {node: Outcomes() for node in NODES}
        self.sent = 0
        self._senders = {
            node: Sender(node, credentials=pki.credentials(node.name, Role.CLIENT), threads=1).open() for node in NODES
        }
        self._models = []
        for number in range(8):
            path = folder / f"model-{number}.npy"
            self._models.append((path, model_file(path, 250_000, seed=number)))

    def send(self) -> None:
        """One more of each from every node."""
        path, digest = self._models[self.sent % len(self._models)]
        file_id = local_id(chunk=self.sent)
        for node, sender in self._senders.items():
            done = self.outcomes[node]
            sender.send(self._peer, file_id, path, meta=meta_of(file_id), digest=digest, on_done=done)
            sender.send(self._peer, HELLO, hello_body(node.name), on_done=done)
        self.sent += 1

    def reload(self) -> None:
        for node, sender in self._senders.items():
            sender.reload(self._pki.credentials(node.name, Role.CLIENT), {self._peer})

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()


def test_certificates_and_list_change_under_load_and_not_one_transfer_fails(tmp_path: Path, pki: Pki) -> None:
    names = {"server": Role.SERVER} | {node.name: node.role for node in NODES}
    config = server_config(tmp_path, tls=pki.tls("server", Role.SERVER).model_dump())
    with running(config, tmp_path) as receiver:
        load = Load(pki, receiver.port, tmp_path)
        try:
            for turn in range(1, 5):
                for _ in range(4):
                    load.send()
                for name, role in names.items():
                    pki.issue(name, role)
                receiver.reload()
                load.reload()
                for _ in range(4):
                    load.send()
                for name in names:
                    assert len(pki.authority.revoke(name, keep_newest=True)) == 1
                pki.publish(*names)
                receiver.reload()
                load.reload()
                for done in load.outcomes.values():  # some of each turn arrive before the next begins
                    done.wait(turn * 8)
            ended = [outcome for done in load.outcomes.values() for outcome in done.wait(2 * load.sent)]
        finally:
            load.close()
        assert [outcome for outcome in ended if outcome.status is not Status.DELIVERED] == []
        assert receiver.lines("reload_failed") == []
        assert receiver.lines("restart_needed") == []
    assert len([name for name in files_in(config.spool) if name.endswith(".npy")]) == len(NODES) * load.sent


def test_a_certificate_of_another_authority_is_taken_in_while_both_are_believed(tmp_path: Path, pki: Pki) -> None:
    """Old and new are believed; then everybody gets a certificate of the new; then the new alone is."""
    new = Pki(tmp_path / "new", "the next lab", hosts=pki.hosts)
    both = {"server": Role.SERVER, "node-1": Role.CLIENT}
    config = server_config(tmp_path, tls=pki.tls("server", Role.SERVER).model_dump())
    with (
        logged() as log,
        receiving(config) as receiver,
        Sender(NODE, credentials=pki.credentials("node-1", Role.CLIENT)) as sender,
    ):

        def deliver(number: int) -> None:
            receiver.reload(config)
            sender.reload(pki.credentials("node-1", Role.CLIENT), {peer_of(receiver)})
            body = hello_body("node-1").replace(b'"clients":3', b'"clients":%d' % (number + 10))
            assert sender.send_and_wait(peer_of(receiver), HELLO, body, give_up_after=PATIENCE).delivered

        deliver(1)
        pki.publish(*both, others=(new,))
        deliver(2)
        for number, (name, role) in enumerate(both.items()):
            new.issue(name, role)
            deliver(3 + number)
        assert log.named("connection_refused") == log.named("connection_closed") == []
        new.publish(*both)
        deliver(5)
        # The connection that stood was made with certificates of the old authority: whoever looks first ends it.
        ended = log.named("connection_refused") + log.named("connection_closed")
        assert {line["code"] for line in ended} == {"untrusted"}


def test_a_reload_with_wrong_files_says_so_and_everything_continues(tmp_path: Path, pki: Pki) -> None:
    config = server_config(tmp_path, tls=pki.tls("server", Role.SERVER).model_dump())
    with running(config, tmp_path) as receiver:
        connection = Connection(pki, receiver.port)
        old = (pki.hosts / "server" / "host.key").read_bytes()
        replace(pki.hosts / "server" / "host.key", (pki.hosts / "node-1" / "host.key").read_bytes())
        receiver.reload()
        (line,) = receiver.wait("reload_failed")
        assert "is not the key of" in "".join(receiver._log)
        Connection(pki, receiver.port, NODES[1]).sock.close()
        replace(pki.hosts / "server" / "host.key", old)
        receiver.reload()
        receiver.wait("reloaded")
        connection.sock.close()
    assert "error" in line


# ---------------------------------------------------------------- revocation


def test_revoking_closes_an_open_connection_at_once_and_leaves_the_others(tmp_path: Path, pki: Pki) -> None:
    config = server_config(tmp_path, tls=pki.tls("server", Role.SERVER).model_dump())
    with running(config, tmp_path) as receiver:
        stolen, other = Connection(pki, receiver.port), Connection(pki, receiver.port, NODES[1])
        pki.authority.revoke("node-1")
        pki.publish("server")
        began = time.monotonic()
        receiver.process.send_signal(signal.SIGHUP)
        told = stolen.rest()
        assert time.monotonic() - began < 10, "else it lives for idle_seconds"
        assert b'"code":"revoked"' in told
        (line,) = receiver.wait("connection_refused")
        assert "code=revoked" in line
        assert "node=node-1" in line
        receiver.wait("reloaded")
        other.sock.sendall(encode(FrameType.PING))
        assert other.sock.recv(4096)[5] == FrameType.PONG
        other.sock.close()


def test_a_peer_that_is_removed_from_the_configuration_is_let_go_at_once(tmp_path: Path, pki: Pki) -> None:
    config = server_config(tmp_path, tls=pki.tls("server", Role.SERVER).model_dump())
    with running(config, tmp_path) as receiver:
        stolen, other = Connection(pki, receiver.port), Connection(pki, receiver.port, NODES[1])
        content = yaml.safe_load(receiver.path.read_text())
        content["peers"] = [peer for peer in content["peers"] if peer["name"] != "node-1"]
        receiver.path.write_text(yaml.safe_dump(content))
        receiver.process.send_signal(signal.SIGHUP)
        assert b'"code":"unknown_peer"' in stolen.rest()
        (line,) = receiver.wait("connection_refused")
        assert "code=unknown_peer" in line
        other.sock.sendall(encode(FrameType.PING))
        assert other.sock.recv(4096)[5] == FrameType.PONG
        other.sock.close()


def test_the_side_that_connects_lets_go_as_well_and_comes_back_once_its_peer_has_another_certificate(
    tmp_path: Path, pki: Pki
) -> None:
    config = server_config(tmp_path, tls=pki.tls("server", Role.SERVER).model_dump())
    with (
        logged() as log,
        receiving(config) as receiver,
        Sender(NODE, credentials=pki.credentials("node-1", Role.CLIENT)) as sender,
    ):
        peer = peer_of(receiver)
        assert sender.send_and_wait(peer, HELLO, hello_body("node-1"), give_up_after=PATIENCE).delivered
        pki.authority.revoke("server")
        pki.publish("node-1")
        sender.reload(pki.credentials("node-1", Role.CLIENT), {peer})
        (line,) = log.wait("connection_closed")
        assert (line["code"], line["peer"]) == ("revoked", str(peer))
        done = Outcomes()
        body = hello_body("node-1").replace(b'"clients":3', b'"clients":4')
        sender.send(peer, HELLO, body, on_done=done)
        (waiting,) = log.wait("peer_unreachable")
        assert "of server server was revoked" in waiting["problem"]
        assert done.all == []
        pki.issue("server", Role.SERVER)
        receiver.reload(config)
        assert done.wait(1)[0].delivered


def test_a_node_that_is_not_configured_any_more_is_sent_nothing_but_stops(tmp_path: Path) -> None:
    node, model = node_config(tmp_path), tmp_path / "m.npy"
    model_file(model, 1000)
    with (
        logged() as log,
        receiving(node) as receiver,
        closing(Outbox.open(SERVER, None, Spool(tmp_path / "outbox").open())) as outbox,
    ):
        peer, elsewhere = peer_of(receiver), Peer("node-9", "127.0.0.1", free_port())
        outbox.send(peer, global_id(), model)
        assert [outcome.status for outcome in ended(outbox)] == [Status.DELIVERED]
        outbox.send(elsewhere, global_id(), model)
        outbox.send(elsewhere, stop_id(), stop_body())
        log.wait("peer_unreachable")
        outbox.reload(None, set())
        (line,) = log.wait("connection_closed")
        assert (line["code"], line["peer"]) == ("unknown_peer", str(peer))
        (line,) = log.wait("connection_refused")
        assert "is not configured at server server any more" in line["problem"]
        late = node_config(tmp_path / "late", name="node-9", listen={"port": elsewhere.port})
        with receiving(late) as other:
            assert [outcome.file_id for outcome in ended(outbox)] == [stop_id()]
            assert files_in(other.spool.root) == [f"stop/{TASK}.json"]


def test_plain_connections_end_once_tls_is_configured(tmp_path: Path, pki: Pki) -> None:
    config = server_config(tmp_path)
    with logged() as log, receiving(config) as receiver, Sender(NODE) as sender:
        peer = peer_of(receiver)
        assert sender.send_and_wait(peer, HELLO, hello_body("node-1"), give_up_after=PATIENCE).delivered
        receiver.reload(config.model_copy(update={"tls": pki.tls("server", Role.SERVER)}))
        (line,) = log.wait("connection_refused")
        assert "is not encrypted, and `tls:` is configured now" in line["problem"]
        sender.reload(pki.credentials("node-1", Role.CLIENT), {peer})
        assert sender.send_and_wait(peer, HELLO, hello_body("node-1"), give_up_after=PATIENCE).delivered


def test_who_is_refused_hears_why(tmp_path: Path, pki: Pki) -> None:
    config = server_config(tmp_path, tls=pki.tls("server", Role.SERVER).model_dump())
    expired = pki.credentials("node-1", Role.CLIENT, clock=ends_in(-5), days=1)
    with receiving(config) as receiver:
        for _ in range(5):  # the refusal races with the node's first words
            with logged() as log, Sender(NODE, credentials=expired) as sender:
                sender.send(peer_of(receiver), HELLO, hello_body("node-1"), on_done=Outcomes())
                (line,) = log.wait("peer_unreachable")
            assert "it refuses this host's certificate or TLS: certificate expired" in line["problem"]


# ---------------------------------------------------------------- time


def test_no_connection_outlives_the_certificate_of_its_peer(tmp_path: Path, pki: Pki) -> None:
    config = server_config(tmp_path, tls=pki.tls("server", Role.SERVER).model_dump())
    with logged() as log, receiving(config) as receiver:
        connection = Connection(pki, receiver.port, clock=ends_in(5), days=1)
        assert b'"code":"expired"' in connection.rest()
        (line,) = log.wait("connection_refused")
        assert "the certificate of client node-1 has expired" in line["problem"]


def test_a_certificate_that_expires_soon_is_reported_at_the_start_and_after_each_reload(
    tmp_path: Path, pki: Pki
) -> None:
    soon = pki.tls("server", Role.SERVER, days=10)
    with logged() as log, receiving(server_config(tmp_path, tls=soon.model_dump())) as receiver:
        (line,) = log.wait("certificate_expires")
        assert line["level"] == "warning"
        assert f"{soon.certificate} expires in 10 days; renew it" in line["problem"]
        pki.issue("server", Role.SERVER, clock=ends_in(-5), days=1)
        receiver.reload(receiver.config)
        assert "has expired: no host accepts it any more" in log.wait("certificate_expires", 2)[1]["problem"]
    with logged() as log, Sender(NODE, credentials=pki.credentials("node-1", Role.CLIENT, days=15)):
        pass
    assert log.named("certificate_expires") == []


def test_a_key_comes_as_a_credential_and_a_newer_one_in_an_earlier_folder_is_taken(
    tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, given = tmp_path / "copied", tmp_path / "given"
    first.mkdir()
    given.mkdir()
    monkeypatch.setenv("FEDSIM_CREDENTIALS", f"{first}:{given}")
    tls = pki.tls("server", Role.SERVER).model_copy(update={"key": Path("tls.key")})
    with pytest.raises(ConfigError, match=f"no such credential in {first}:{given}"):
        Credentials(tls, SERVER)
    replace(given / "tls.key", (pki.hosts / "server" / "host.key").read_bytes())
    Credentials(tls, SERVER)
    pki.issue("server", Role.SERVER)
    with pytest.raises(ConfigError, match=f"{given}/tls.key is not the key of"):
        Credentials(tls, SERVER)
    replace(first / "tls.key", (pki.hosts / "server" / "host.key").read_bytes())
    Credentials(tls, SERVER)
