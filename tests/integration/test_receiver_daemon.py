from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transfer_support import (
    PATIENCE,
    RECEIVER,
    RawPeer,
    node_config,
    receiving,
    write_config,
)

from fedsim.config import ReceiverConfig, load_config
from fedsim.errors import EX_CONFIG, EX_UNAVAILABLE, Unavailable
from fedsim.wire.protocol.frames import FrameType

SAMPLE = Path(__file__).parents[2] / "etc" / "fedsim" / "receiver.yml"


def test_the_sample_configuration_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    config = load_config(SAMPLE, ReceiverConfig)
    minimal = tmp_path / "receiver.yml"
    keys = {"name": "server", "role": "server", "listen": {"port": 9001}, "spool": "/var/lib/fedsim/server"}
    minimal.write_text(yaml.safe_dump(keys | {"peers": [peer.model_dump() for peer in config.peers]}))
    assert load_config(minimal, ReceiverConfig) == config
    assert set(yaml.safe_load(SAMPLE.read_text())["limits"]) == set(type(config.limits).model_fields)


def run_daemon(config: Path, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [*RECEIVER, "--config", str(config), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **more)


def test_a_port_in_use_is_named_and_ends_with_69(tmp_path: Path) -> None:
    with receiving(node_config(tmp_path)) as receiver:
        config = node_config(tmp_path / "other", listen={"port": receiver.port})
        with pytest.raises(Unavailable, match=f"port {receiver.port} on 127.0.0.1"), receiving(config):
            pass
        ended = run_daemon(write_config(tmp_path, config))
        assert ended.returncode == EX_UNAVAILABLE
        assert str(receiver.port) in ended.stderr


def test_a_spool_has_one_receiver_at_a_time(tmp_path: Path) -> None:
    config = node_config(tmp_path)
    with (
        receiving(config) as receiver,
        pytest.raises(Unavailable, match=f"another receiver uses the spool {receiver.spool.root}"),
        receiving(config),
    ):
        pass
    with receiving(config):
        pass


def test_a_broken_configuration_is_reported_whole_and_ends_with_78(tmp_path: Path) -> None:
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
    code = start + "import sys; from fedsim.receiver.main import main; sys.exit(main())"
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


def test_a_peer_that_is_removed_from_the_configuration_is_let_go(tmp_path: Path) -> None:
    config = node_config(tmp_path)
    with receiving(config) as receiver, RawPeer(receiver.port) as peer:
        peer.expect(FrameType.HELLO)
        others = node_config(tmp_path, peers=[{"name": "other", "role": "server"}])
        receiver.reload(others)
        peer.expect_end("unknown_peer")
