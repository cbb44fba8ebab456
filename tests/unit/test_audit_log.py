"""The log of what leaves a node: complete, durable before anything is offered, chained, and repaired."""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from selectors import DefaultSelector
from typing import Any

import numpy as np
import pytest
from presence import fill, small_disk
from test_task_machine_more import assignment

from fedsim.client.audit_log import AuditLog, OfferedFile, audit_line
from fedsim.client.context import NodeContext
from fedsim.client.task import NodeTask
from fedsim.config import ClientConfig
from fedsim.metrics import NodeMetrics
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.writer import Writer
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import Spool
from fedsim.spool.updates import write_update
from fedsim.state_machines.node_events import SendUpdates
from fedsim.update import Update
from fedsim.wire.peer import Identity, Peer
from fedsim.worker.forking import ForkServers

SERVER = Peer("server", "127.0.0.1", 9001)
TASK = "5" * 32


def offered(round_number: int) -> dict[str, Any]:
    file = FileId(kind=Kind.LOCALPARAM, task=TASK, round=round_number, chunk=0)
    return audit_line(OfferedFile(file, b"", 2728, 150), assignment(), "server")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def three_lines(path: Path) -> AuditLog:
    log = AuditLog(path).open()
    log.add([offered(1)])
    log.add([offered(2), offered(3)])
    return log


def test_an_intact_log_is_read_again_with_the_same_head(path: Path) -> None:
    log = three_lines(path)
    assert log.head.lines == 3
    before = path.read_bytes()
    again = AuditLog(path).open()
    assert again.head == log.head
    assert path.read_bytes() == before
    first = lines(path)[0]
    assert (first["round"], first["bytes"], first["num_examples"], first["to"]) == (1, 2728, 150, "server")
    assert "client" not in first


@pytest.mark.parametrize("torn", [b'{"at": "2026', b"\0" * 500])
def test_what_a_power_cut_leaves_of_a_line_is_removed_and_the_repair_noted_once(path: Path, torn: bytes) -> None:
    three_lines(path)
    with path.open("ab") as file:
        file.write(torn)
    for _ in range(2):
        AuditLog(path).open()
        *whole, repair = lines(path)
        assert [line["round"] for line in whole] == [1, 2, 3]
        assert repair["problems"] == [f"an unfinished line of {len(torn)} bytes after line 3 was removed"]


@pytest.mark.parametrize("change", ["edit", "remove", "insert"])
def test_a_line_that_was_changed_removed_or_inserted_is_noted_once(path: Path, change: str) -> None:
    three_lines(path)
    whole = path.read_text().splitlines(keepends=True)
    match change:
        case "edit":
            whole[1] = whole[1].replace('"bytes": 2728', '"bytes": 1')
        case "remove":
            del whole[1]
        case "insert":
            whole.insert(1, whole[0])
    path.write_text("".join(whole))
    for _ in range(2):
        AuditLog(path).open()
        repairs = [line for line in lines(path) if line["kind"] == "repair"]
        (problem,) = repairs[0]["problems"]
        assert problem == "line 2, or one before it, is not what was written"
        assert len(repairs) == 1


def test_lines_of_an_older_version_are_covered_by_those_that_follow(path: Path) -> None:
    path.write_text('{"task": 1}\n{"task": 2}\n')
    log = AuditLog(path).open()
    log.add([offered(1)])
    assert AuditLog(path).open().head == log.head
    path.write_text(path.read_text().replace('"task": 2', '"task": 3'))
    AuditLog(path).open()
    assert lines(path)[-1]["kind"] == "repair"


def test_lines_that_find_no_room_are_not_written_in_part(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        log = AuditLog(disk / "audit.jsonl").open()
        log.add([offered(1)])
        fill(disk / "ballast")
        with pytest.raises(OSError, match="No space left"):
            log.add(offered(number) for number in range(2, 100))
        assert len(lines(disk / "audit.jsonl")) == 1
        (disk / "ballast").unlink()
        log.add([offered(2)])
        assert [line["round"] for line in lines(disk / "audit.jsonl")] == [1, 2]
        assert AuditLog(disk / "audit.jsonl").open().head == log.head


class RecordingOutbox(Outbox):
    """Notes what the log contained when a file was offered."""

    path: Path
    log_when_sent: list[list[dict[str, Any]]]

    def send(self, *_: Any, **__: Any) -> None:
        self.log_when_sent.append(lines(self.path) if self.path.exists() else [])


@pytest.fixture
def context(tmp_path: Path, path: Path) -> Iterator[NodeContext]:
    config = ClientConfig.model_validate(
        {
            "name": "a",
            "server": {"port": 9001},
            "spool": tmp_path,
            "data": tmp_path,
            "datasets": [{"name": "digits", "path": "digits", "format": "digits"}],
        }
    )
    with (
        DefaultSelector() as selector,
        closing(RecordingOutbox.open(Identity("a", Role.CLIENT), None, Spool(tmp_path).open())) as outbox,
        Writer() as writer,
    ):
        outbox.path, outbox.log_when_sent = path, []
        servers = ForkServers(selector)
        yield NodeContext(
            config=config,
            spool=Spool(tmp_path).open(),
            outbox=outbox,
            writer=writer,
            server=SERVER,
            fork_servers=servers,
            audit_log=AuditLog(path).open(),
            announce=lambda: None,
            metrics=NodeMetrics(),
        )
        servers.close()


def test_a_file_has_its_line_on_disk_before_it_is_offered(context: NodeContext) -> None:
    task = assignment()
    folder = context.spool.folder(Kind.LOCALPARAM) / task.task
    write_update(folder, Update(base_round=1, chunk=0, num_examples=150), np.zeros(10, np.float32))
    running = NodeTask(task, context)
    running._updates = running._read().updates
    running.in_turn(lambda: [SendUpdates(1, 0)])
    outbox = context.outbox
    assert isinstance(outbox, RecordingOutbox)
    assert outbox.log_when_sent == [], "not before the line is durable"
    while not outbox.log_when_sent:
        select.select([context.writer], [], [], 10)
        context.writer.dispatch()
    ((line,),) = outbox.log_when_sent
    assert (line["kind"], line["round"], line["chunk"], line["num_examples"]) == ("localparam", 1, 0, 150)
