"""`fedsim-web` as a process: what it says and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from fedsim.config import WebConfig, load_config
from fedsim.store import open_store
from fedsim.store.records import UserRole, UserState
from fedsim.web import accounts

PROGRAM = Path(sys.executable).with_name("fedsim-web")
SAMPLE = Path(__file__).parents[2] / "etc" / "fedsim" / "web.yml"


def written(folder: Path, **settings: object) -> Path:
    content = {
        "database": f"sqlite:///{folder}/fedsim.db",
        "listen": {"address": "127.0.0.1", "port": 0},
        "checkpoints": str(folder),
        **settings,
    }
    path = folder / "web.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def migrated(folder: Path) -> None:
    with closing(open_store(f"sqlite:///{folder}/fedsim.db")) as store:
        store.migrate()


@contextmanager
def running(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([PROGRAM, "--config", path], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def await_line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(pattern, re.sub(r"\x1b\[\d*m", "", line)):
            return found
    pytest.fail(f"fedsim-web ended without saying {pattern}")


def test_the_sample_file_is_valid_and_shows_every_key_with_its_default() -> None:
    assert load_config(SAMPLE, WebConfig) == WebConfig()
    text = SAMPLE.read_text(encoding="utf-8")
    assert all(re.search(rf"^#?{name}:", text, re.MULTILINE) for name in WebConfig.model_fields)
    done = subprocess.run(
        [PROGRAM, "--config", SAMPLE, "--validate-config"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{SAMPLE} is valid.\n")


def test_all_problems_of_a_file_are_named_and_the_exit_code_is_78(tmp_path: Path) -> None:
    path = written(tmp_path, threads=0, registration="ajar", colour="blue")
    done = subprocess.run([PROGRAM, "--config", path, "--validate-config"], capture_output=True, text=True, check=False)
    assert done.returncode == 78
    for place in ("'threads'", "'registration'", "'colour'"):
        assert f"At {place}" in done.stderr


def test_a_port_in_use_is_named_and_the_exit_code_is_69(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        path = written(tmp_path, listen={"address": "127.0.0.1", "port": port})
        done = subprocess.run([PROGRAM, "--config", path], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 69
    assert f"127.0.0.1:{port} is in use" in done.stderr


def test_a_database_that_is_not_there_yet_is_waited_for_and_the_wait_is_said(tmp_path: Path) -> None:
    with running(written(tmp_path)) as process:
        await_line(process, "waiting_for_database")
        migrated(tmp_path)
        url = await_line(process, r"ready .*address=(\S+)")[1]
        assert httpx.get(f"{url}/healthz").json()["database"] == "ok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_it_stops_while_it_waits_for_the_database(tmp_path: Path) -> None:
    with running(written(tmp_path)) as process:
        await_line(process, "waiting_for_database")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_submitting_notifies_the_servers_receiver_at_once(tmp_path: Path) -> None:
    """From HTTP request to the first bytes on the server's port: the hint needs no poll."""
    migrated(tmp_path)
    with closing(open_store(f"sqlite:///{tmp_path}/fedsim.db")) as store:
        user = store.users.create("lin", "!", role=UserRole.USER, state=UserState.ACTIVE, language="", now=time.time())
        secret, _ = accounts.make_token(store, user, "test", now=time.time())
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        receiver.settimeout(20)
        server = {"address": "127.0.0.1", "port": receiver.getsockname()[1]}
        with running(written(tmp_path, server=server)) as process:
            url = await_line(process, r"ready .*address=(\S+)")[1]
            headers = {"Authorization": f"Bearer {secret}"}
            answer = httpx.post(f"{url}/api/v1/tasks", headers=headers, content=json.dumps({"num_rounds": 3}))
            assert answer.status_code == 201
            connection, _ = receiver.accept()
            with connection:
                connection.settimeout(20)
                assert connection.recv(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
