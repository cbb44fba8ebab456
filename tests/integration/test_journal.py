"""The journal entries of every process: native fields, one entry for each event."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from journal_support import Journal, own_journal
from platform_support import small_settings
from transfer_support import PATIENCE, SERVER, stop_body, stop_id

from fedsim.messages import Assignment, EngineInfo, ModelSpec, Uplink
from fedsim.spool.files import FileId, Kind
from fedsim.wire import Peer
from fedsim.wire.sender import Sender

PROGRAM = Path(sys.executable).with_name("fedsim-receiver")
TASK = "0123456789abcdef" * 2
ASSIGNMENT = Assignment(
    task=TASK,
    number=42,
    settings=small_settings(),
    first_client=0,
    num_clients=20,
    model_spec=ModelSpec.of(small_settings(), (8, 8), 10),
    engine=EngineInfo(),
    uplink=Uplink.SUM,
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    folder = tmp_path / "journal"
    folder.mkdir()
    with own_journal(folder) as journal:
        yield journal


EVENTS = """
import logging, selectors, threading, warnings
from pathlib import Path
from fedsim.log import configure_logging, get_logger
from fedsim.settings import TaskSettings
from fedsim.worker.forking import ForkServers
from fedsim.worker.jobs import Aggregate
from fedsim.worker.process import WorkerProcess

configure_logging(identifier="fedsim-client", node="node-a")
log = get_logger(task=42)
log.info("round_trained", round=7, examples=600)
log.info("file_received", node="node-b")
warnings.warn("this will change", DeprecationWarning, stacklevel=1)
logging.getLogger("gunicorn.error").error("worker %s died", 5)
try:
    {}["absent"]
except KeyError:
    log.exception("failed")
thread = threading.Thread(target=lambda: [][1], name="sockets")
thread.start()
thread.join()
with selectors.DefaultSelector() as selector:
    servers = ForkServers(selector)
    worker = WorkerProcess(servers, lambda: None, threads=1, learns=False, log={"task": 42, "node": "node-a"})
    nowhere = Path("/nowhere")
    worker.submit(Aggregate(settings=TaskSettings(), round=1, base=nowhere, updates=(), files=(), out=nowhere))
    while not worker.replies()[0]:
        [key.data() for key, _ in selector.select()]
    worker.close()
    servers.close()
1 / 0
"""


def test_every_event_is_one_entry_with_its_fields(journal: Journal) -> None:
    with journal.running([sys.executable, "-Wdefault", "-c", EVENTS]) as process:
        trained = journal.await_event("round_trained")
        assert trained["MESSAGE"] == "round_trained node=node-a task=42 round=7 examples=600"
        assert trained["PRIORITY"] == "6"
        assert trained["SYSLOG_IDENTIFIER"] == "fedsim-client"
        told = {name: trained[f"FEDSIM_{name}"] for name in ("TASK", "ROUND", "NODE", "EXAMPLES")}
        assert told == {"TASK": "42", "ROUND": "7", "NODE": "node-a", "EXAMPLES": "600"}
        assert journal.await_event("file_received")["FEDSIM_NODE"] == "node-b", "whom it is about comes first"

        warned = journal.await_event("library_message", library="py.warnings")
        assert "this will change" in warned["MESSAGE"]
        assert warned["PRIORITY"] == "4"
        gunicorn = journal.await_event("library_message", library="gunicorn.error")
        assert (gunicorn["FEDSIM_TEXT"], gunicorn["PRIORITY"]) == ("worker 5 died", "3")

        failed = journal.await_event("failed", task="42")
        assert failed["MESSAGE"].startswith("failed node=node-a task=42\nTraceback")
        assert failed["MESSAGE"].endswith("KeyError: 'absent'")
        in_a_thread = journal.await_event("crashed", thread="sockets")
        assert in_a_thread["MESSAGE"].endswith("IndexError: list index out of range")

        worker = journal.await_event("job_failed", task="42")
        assert worker["SYSLOG_IDENTIFIER"] == "-c", "the command that started it"
        assert "FileNotFoundError" in worker["MESSAGE"]
        crashed = journal.await_entry(lambda entry: "ZeroDivisionError" in entry["MESSAGE"])
        assert (crashed["FEDSIM_EVENT"], crashed["PRIORITY"]) == ("crashed", "2")
        assert process.wait(60) == 1
        assert journal.printed.read() == b"", "what is in the journal is not printed a second time"


def test_events_are_printed_where_the_journal_is_not_standard_error_or_cannot_be_reached(journal: Journal) -> None:
    say = "from fedsim.log import *; configure_logging(); get_logger().info('here', task=42)"
    with journal.running([sys.executable, "-c", say], JOURNAL_STREAM="1:2") as process:
        assert process.wait(60) == 0
        assert b"here" in journal.printed.read()
    journal.close()
    with journal.running([sys.executable, "-c", say]) as process:
        assert process.wait(60) == 0
        assert b"here" in journal.printed.read()


def test_a_receivers_lines_carry_the_number_of_the_task_and_who_speaks(journal: Journal, tmp_path: Path) -> None:
    config = tmp_path / "receiver.yml"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    peers = [{"name": "server", "role": "server"}]
    content = {"name": "node-a", "role": "client", "listen": {"port": port}, "spool": str(tmp_path / "spool")}
    config.write_text(yaml.safe_dump({**content, "peers": peers}))
    with journal.running([PROGRAM, "--config", config]) as process:
        assert journal.await_event("ready")["SYSLOG_IDENTIFIER"] == "fedsim-receiver"
        with closing(Sender(SERVER).open()) as sender:
            peer = Peer("node-a", "127.0.0.1", port)
            body = ASSIGNMENT.model_dump_json().encode()
            sender.send_and_wait(peer, FileId(kind=Kind.INITPARAM, task=TASK), body, give_up_after=PATIENCE)
            sender.send_and_wait(peer, stop_id(TASK), stop_body(TASK), give_up_after=PATIENCE)
        assigned = journal.await_event("file_received", kind="initparam")
        stopped = journal.await_event("file_received", kind="stop")
        process.terminate()
        assert process.wait(60) == 0
    for entry in (assigned, stopped):
        told = {name: entry[f"FEDSIM_{name}"] for name in ("TASK", "TASK_UID", "NODE", "SENDER")}
        assert told == {"TASK": "42", "TASK_UID": TASK, "NODE": "node-a", "SENDER": "server"}
