"""Daemons as systemd's services: when they are ready, how they are watched and reloaded, sockets they are passed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from presence import missing
from service_support import Service, program
from test_web_main import migrated, written
from transfer_support import RawPeer

from fedsim.receiver.pulse import Pulse
from fedsim.testing.ports import free_port
from fedsim.wire.protocol.frames import FrameType
from fedsim.wire.transport.reactor import Reactor


def receiver_file(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "node-1",
        "role": "client",
        "listen": {"port": 0},
        "spool": str(folder / "spool"),
        "peers": [{"name": "server", "role": "server"}],
        **changes,
    }
    path = folder / "receiver.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def receiver(folder: Path, **changes: Any) -> list[str | Path]:
    return [program("receiver"), "--config", receiver_file(folder, **changes)]


def greet(port: int) -> None:
    """Somebody who is served."""
    with RawPeer(port) as peer:
        peer.expect(FrameType.HELLO)


# ---------------------------------------------------------------- ready, watched, reloaded, stopped


def test_a_receiver_is_ready_when_its_port_is_and_shows_what_it_does_until_it_stops(tmp_path: Path) -> None:
    port = free_port()
    with Service(tmp_path, receiver(tmp_path, listen={"port": port})) as service:
        service.await_told("READY=1")
        greet(port)
        assert any(message.startswith("STATUS=0 connections; 0 files stored") for message in service.told)
        service.await_told("WATCHDOG=1")
        before = time.monotonic_ns() // 1000
        service.signal(signal.SIGHUP)
        reloading = dict(line.split("=", 1) for line in service.await_told("RELOADING=1").splitlines())
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert service.await_told("READY=1", "WATCHDOG=1") == "READY=1", "the reload has an end"
        assert service.stop() == 0
        service.await_told("STOPPING=1")


def test_a_server_is_not_ready_before_its_database_is_and_may_wait_as_long_as_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "server.yml"
    database = f"mysql+pymysql://fedsim@127.0.0.1:{free_port()}/fedsim"
    spool = str(tmp_path / "spool")
    path.write_text(yaml.safe_dump({"spool": spool, "database": database, "nodes": [{"name": "node-a"}]}))
    with Service(tmp_path, [program("server"), "--config", path]) as service:
        assert "waiting for the database" in service.await_told("STATUS=")
        for _ in range(2):
            assert "WATCHDOG=1" in service.await_told("EXTEND_TIMEOUT_USEC=30000000").splitlines()
        assert service.stop() == 0
        service.await_told("STOPPING=1")
        assert not any("READY=1" in message for message in service.told)


def test_a_web_is_ready_when_someone_serves_and_continues_with_what_it_has_when_its_file_is_wrong(
    tmp_path: Path,
) -> None:
    path = written(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Service(tmp_path, [program("web"), "--config", path], [listener]) as service:
            service.await_told("EXTEND_TIMEOUT_USEC=")
            migrated(tmp_path)
            service.await_told("READY=1")
            assert sum("READY=1" in message for message in service.told) == 1, (
                "not before there is a process that serves"
            )
            assert httpx.get(f"{url}/healthz").status_code == 200
            assert 'type="password"' in httpx.get(f"{url}/register").text
            service.await_told("WATCHDOG=1")

            path.write_text(path.read_text() + "registration: closed\n")
            service.signal(signal.SIGHUP)
            service.await_told("RELOADING=1")
            service.await_told("READY=1")
            assert 'type="password"' not in httpx.get(f"{url}/register").text
            path.write_text("colour: blue\n")
            service.signal(signal.SIGHUP)
            service.await_told("RELOADING=1")
            service.await_told("READY=1")
            assert "reload_failed" in service.log.read_text()
            assert 'type="password"' not in httpx.get(f"{url}/register").text
            assert service.stop() == 0
            service.await_told("STOPPING=1")


def test_a_receiver_whose_threads_are_stuck_feeds_no_watchdog() -> None:
    hub = Reactor("test", 2)
    hub.start()
    go_on = threading.Event()

    class Stuck:
        deadline = None

        def interest(self) -> tuple[int, int]:
            return (-1, 0)

        def handle(self, _: int) -> bool:
            started.release()
            go_on.wait()
            return False

    started = threading.Semaphore(0)
    try:
        for _ in range(2):
            hub.add(Stuck())
        for _ in range(2):
            assert started.acquire(timeout=10)
        pulse = Pulse(hub)
        assert not pulse.beats()
        go_on.set()
        assert pulse._answered.wait(10)
        assert pulse.beats()
    finally:
        go_on.set()
        hub.close()


def test_metrics_on_a_port_in_use_end_the_daemon_with_69_and_name_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = receiver(tmp_path, metrics={"port": port})
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 69
    assert f"metrics cannot be served on 127.0.0.1:{port}" in done.stderr


def test_a_scraper_that_says_nothing_does_not_hold_the_end_up(tmp_path: Path) -> None:
    port = free_port()
    with Service(tmp_path, receiver(tmp_path, metrics={"port": port})) as service:
        service.await_told("READY=1")
        with socket.create_connection(("127.0.0.1", port)):
            assert "fedsim_connections_open" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
            started = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - started < 5


# ---------------------------------------------------------------- sockets that are passed


def test_no_connection_is_refused_while_a_receiver_restarts(tmp_path: Path) -> None:
    command = receiver(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Service(tmp_path, command, [listener]) as service:
            service.await_told("READY=1")
            greet(port)
            assert service.stop() == 0
        with RawPeer(port) as early:  # no service is there, but systemd holds the port
            service = Service(tmp_path, command, [listener])
            with service:
                service.await_told("READY=1")
                early.expect(FrameType.HELLO)
                assert service.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        greet(port)


def test_a_receiver_listens_on_all_sockets_that_it_is_passed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        with Service(tmp_path, receiver(tmp_path), [one, other]) as service:
            service.await_told("READY=1")
            for listener in (one, other):
                greet(listener.getsockname()[1])
            assert service.stop() == 0
        assert "listens_elsewhere" in service.log.read_text()


TAKE = """
import os, subprocess, sys
from fedsim.activation import passed_sockets
from fedsim.config import Address
(sock,) = passed_sockets(Address(port=1), plain=True)
assert not sock.get_inheritable()
assert not [name for name in os.environ if name.startswith("LISTEN_")]
assert passed_sockets(Address(port=1), plain=True) == []
"""


def test_children_inherit_neither_sockets_nor_the_variables_that_tell_of_them(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, Service(tmp_path, [sys.executable, "-c", TAKE], [listener]) as service:
        assert service.process.wait(60) == 0, service.log.read_text()


def unsuitable(kind: str) -> socket.socket:
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(f"\0fedsim-test-{free_port()}")
        sock.listen()
        return sock
    if kind == "deaf":
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        return socket.create_server(("0.0.0.0", 0))  # noqa: S104 - no one is served there: that is the test
    except OSError:
        missing("a socket beyond loopback cannot be opened")


@pytest.mark.parametrize(
    ("kind", "told"),
    [("unix", "is not a TCP socket"), ("deaf", "does not listen"), ("far", "0.0.0.0 is not on loopback")],
)
def test_a_passed_socket_that_must_not_be_served_ends_a_receiver_with_78(tmp_path: Path, kind: str, told: str) -> None:
    with unsuitable(kind) as sock, Service(tmp_path, receiver(tmp_path), [sock]) as service:
        assert service.process.wait(60) == 78
        assert f"the socket port-0: {told}" in service.log.read_text().replace("\n", " ")
