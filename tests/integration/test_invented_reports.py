"""What a node invents costs the server neither memory nor messages; a fault in one announcement disturbs no other."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import psutil
import pytest
import yaml
from platform_support import DIGITS, Platform

from fedsim import __version__
from fedsim.messages import MAX_LISTED, EngineInfo, Hello, TaskReport
from fedsim.server.main import MAX_UNKNOWN_TASKS
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.peer_queue import PeerQueue
from fedsim.testing.local_cluster import NodeSpec
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Sender

NODE = "node-a"
FAULT = """
from fedsim.server import known_data


def learn(self, hello, *arguments):
    if hello.clients == 13:
        raise ZeroDivisionError("injected into the announcement")
    return original(self, hello, *arguments)


original, known_data.KnownData.learn = known_data.KnownData.learn, learn
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A server with its receiver and the web; its node, which listens on no port, is played by the test."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "inject").mkdir()
    injected = "import sys\nif 'fedsim-server' in open('/proc/self/cmdline').read():\n"
    lines = "".join(f"    {line}\n" for line in FAULT.splitlines())
    (folder / "inject" / "sitecustomize.py").write_text(injected + lines, encoding="utf-8")
    cluster = Platform(folder, [NodeSpec(NODE, folder, [DIGITS], listens=False)])
    del cluster.processes[NODE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "inject"))
        with cluster:
            yield cluster


@pytest.fixture
def announce(lab: Platform) -> Iterator[Callable[..., None]]:
    """Announces the node, and awaits that the server has recorded it."""
    port = yaml.safe_load(lab.config("receiver").read_text(encoding="utf-8"))["listen"]["port"]
    number = 0.0

    def send(clients: int = 20, tasks: tuple[TaskReport, ...] = ()) -> None:
        nonlocal number
        number += 1
        said = {"node": NODE, "version": __version__, "sent_at": number, "clients": clients}
        body = Hello(**said, engine=EngineInfo(), tasks=tasks).model_dump_json().encode()
        sent = sender.send_and_wait(Peer("server", "127.0.0.1", port), FileId(kind=Kind.HELLO), body, give_up_after=60)
        assert sent.delivered, sent
        lab.await_row(lambda: [node for node in lab.store.nodes.all() if node.hello["sent_at"] == number])

    with Sender(Identity(NODE, Role.CLIENT)) as sender:
        yield send


def invented() -> tuple[TaskReport, ...]:
    return tuple(TaskReport(task=secrets.token_hex(16), state="ready") for _ in range(MAX_LISTED))


def test_made_up_tasks_cost_the_server_no_memory_and_few_answers(
    lab: Platform, announce: Callable[..., None], record_property: Callable[[str, object], None]
) -> None:
    server = psutil.Process(lab.processes["server"].pid)
    for _ in range(10):
        announce(tasks=invented())
    before = server.memory_info().rss
    for _ in range(40):
        announce(tasks=invented())
    grown = (server.memory_info().rss - before) / 2**20
    record_property("grown_mib", grown)
    assert grown < 10, f"40 announcements cost {grown:.1f} MiB"
    answers = PeerQueue(lab.server_spool, NODE).entries()  # they wait for a connection that the node opens
    assert 0 < len(answers) <= MAX_UNKNOWN_TASKS


def test_a_fault_while_one_announcement_is_read_ends_nothing_else(lab: Platform, announce: Callable[..., None]) -> None:
    server = lab.processes["server"].pid
    announce(clients=13)
    lab.await_log("server", "ZeroDivisionError: injected into the announcement")
    announce(clients=14)
    assert lab.processes["server"].pid == server
    assert psutil.Process(server).is_running()
