"""`fedsim-web` with clients that send or read slowly, incorrectly, or not at all: no other client waits for them."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from time import monotonic

import httpx
import pytest
from test_web_main import await_line, migrated, running, written

from fedsim.settings import TaskSettings
from fedsim.store import open_store
from fedsim.store.records import Checkpoint, TaskState, UserRole, UserState
from fedsim.web import accounts

THREADS = 2
TRIES = 3  # a busy machine may lose a second now and then
MODEL = bytes(range(256)) * 256 * 1024  # 64 MiB: far more than a socket holds
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HALVES = {
    "nothing": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "half a body": b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nname=",
    "a body that is too long": b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\nname=",
    "half a chunk": b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nname=",
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.URL, dict[str, str]]]:
    """The address of a web that has patience for a second, and a header with which one may download task 1."""
    folder = tmp_path_factory.mktemp("web")
    migrated(folder)
    with closing(open_store(f"sqlite:///{folder}/fedsim.db")) as store:
        user = store.users.create("lin", "!", role=UserRole.USER, state=UserState.ACTIVE, language="", now=time.time())
        secret, _ = accounts.make_token(store, user, "test", now=time.time())
        task = store.tasks.create(user.id, TaskSettings(), "ab" * 16, 1.0)
        store.tasks.claim_next(1.0)
        store.tasks.move(task.uid, TaskState.RUNNING, now=time.time())
        (folder / "task-1").mkdir()
        (folder / "task-1" / "round-0001.safetensors").write_bytes(MODEL)
        store.checkpoints.record(
            task.uid, Checkpoint(1, "task-1/round-0001.safetensors", "cd" * 32, len(MODEL), created_at=1.0)
        )
    settings = {"threads": THREADS, "request_timeout_seconds": 1, "min_bytes_per_second": 2**25}
    with running(written(folder, **settings)) as process:
        url = httpx.URL(await_line(process, r"ready .*address=(\S+)")[1])
        yield url, {"Authorization": f"Bearer {secret}"}


def connect(url: httpx.URL) -> socket.socket:
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def answers_quickly(url: httpx.URL) -> bool:
    """Whether a page arrives before the web disconnects slow clients, which is after a second."""
    began = monotonic()
    assert httpx.get(url.join("/healthz"), timeout=5).status_code == 200
    return monotonic() - began < 0.9


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    content = b""
    while data := connection.recv(65536):
        content += data
    return content


@pytest.mark.parametrize("half", HALVES)
def test_half_sent_requests_block_no_one_and_are_closed(web: tuple[httpx.URL, dict[str, str]], half: str) -> None:
    url, _ = web
    with ExitStack() as stack:
        for _ in range(TRIES):
            slow = [stack.enter_context(connect(url)) for _ in range(5 * THREADS)]
            for connection in slow:
                connection.sendall(HALVES[half])
            began = monotonic()
            if answers_quickly(url):
                break
        else:
            pytest.fail("it waited for those who were closed after a second")
        answers = {read_all(connection).partition(b"\r\n")[0] for connection in slow}
        assert monotonic() - began < 8
    expected = {
        "nothing": b"",
        "a body that is too long": b"HTTP/1.1 413 Request Entity Too Large",
        "half a chunk": b"HTTP/1.1 411 Length Required",
    }
    assert answers == {expected.get(half, b"HTTP/1.1 408 Request Timeout")}


def test_a_byte_now_and_then_does_not_put_the_end_off(web: tuple[httpx.URL, dict[str, str]]) -> None:
    url, _ = web
    began = monotonic()
    with connect(url) as connection:
        connection.settimeout(0.1)
        connection.sendall(b"GET / HTTP/1.1\r\n")
        answer = b""
        while not answer:
            connection.sendall(b"x")
            try:
                answer = connection.recv(100)
            except TimeoutError:
                assert monotonic() - began < 8, "it is still waited for"
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_answers_that_no_one_reads_block_no_one_and_are_given_up(web: tuple[httpx.URL, dict[str, str]]) -> None:
    url, headers = web
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"GET /api/v1/tasks/1/checkpoints/1 HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode()
    with ExitStack() as stack:
        for _ in range(TRIES):
            slow = [stack.enter_context(connect(url)) for _ in range(3 * THREADS)]
            for connection in slow:
                connection.sendall(request)
            if answers_quickly(url):
                break
        else:
            pytest.fail("it waited for those who read nothing")
        for connection in slow:
            assert connection.recv(12) == b"HTTP/1.1 200"
        began = monotonic()
        while monotonic() - began < 4.5:  # their time is over after three seconds
            httpx.get(url.join("/healthz"), timeout=5)
        assert all(received(connection) < len(MODEL) for connection in slow)


def received(connection: socket.socket) -> int:
    """How many bytes still come until the other side closes or breaks off."""
    count = 0
    try:
        while data := connection.recv(65536):
            count += len(data)
    except ConnectionResetError:
        pass
    return count


def test_a_large_download_comes_whole_to_who_reads_it(web: tuple[httpx.URL, dict[str, str]]) -> None:
    url, headers = web
    path = url.join("/api/v1/tasks/1/checkpoints/1")
    assert httpx.get(path, headers=headers).content == MODEL
    part = httpx.get(path, headers=headers | {"Range": "bytes=1000000-50000000"})
    assert (part.status_code, part.content) == (206, MODEL[1_000_000:50_000_001])


def test_requests_that_come_in_one_piece_or_in_many_are_each_answered(web: tuple[httpx.URL, dict[str, str]]) -> None:
    url, _ = web
    with connect(url) as connection:
        connection.sendall(HEALTH * 3 + HEALTH[:10])
        connection.sendall(HEALTH[10:-4])
        connection.sendall(b"\r\nConnection: close\r\n\r\n")
        content = read_all(connection)
    assert len(re.findall(rb"HTTP/1\.1 200 OK\r\n", content)) == 4
    assert content.count(b'"status": "ok"') == 4


def test_a_client_that_waits_for_a_word_before_it_sends_the_body_gets_it(web: tuple[httpx.URL, dict[str, str]]) -> None:
    url, headers = web
    with connect(url) as connection:
        connection.sendall(
            b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\nAuthorization: " + headers["Authorization"].encode() + b"\r\n\r\n"
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert read_all(connection).startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, b"431"),
        (b"GET /" + b"a" * 70_000, b"431"),
        (b"hello\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded: yes\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_refused_and_closed(
    web: tuple[httpx.URL, dict[str, str]], sent: bytes, status: bytes
) -> None:
    url, _ = web
    with connect(url) as connection:
        connection.sendall(sent)
        assert read_all(connection).split()[1] == status
