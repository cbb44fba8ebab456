"""The log of what left a node: nothing that may have left is missing there."""

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

from fedsim.client.audit_log import AuditLog, TaskAudit
from fedsim.client.context import NodeContext
from fedsim.client.task import NodeTask
from fedsim.config import ClientConfig
from fedsim.metrics import NodeMetrics
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.writer import Writer
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import Spool
from fedsim.spool.npy import write_array
from fedsim.spool.updates import write_update
from fedsim.update import Update
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Outcome, Status
from fedsim.worker.forking import ForkServers

SERVER = Peer("server", "127.0.0.1", 9001)
TASK = "5" * 32


def update(round_number: int) -> FileId:
    return FileId(kind=Kind.LOCALPARAM, task=TASK, round=round_number, chunk=0)


def taken(file: FileId) -> Outcome:
    return Outcome(SERVER, file, Status.DELIVERED, bytes_sent=1234)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_update_whose_receipt_never_came_is_noted_when_it_is_cleared(tmp_path: Path) -> None:
    audit = TaskAudit(AuditLog(tmp_path / "audit.jsonl"), assignment(), "server")
    for number in (1, 2, 3):
        audit.record_sent(update(number), 2728, 150)
    audit.record_delivered(taken(update(1)))
    audit.record_dropped(lambda file: (file.round or 0) <= 2)
    first, second = lines(tmp_path / "audit.jsonl")
    assert (first["round"], first["bytes"], first["num_examples"]) == (1, 1234, 150)
    assert "acknowledged" not in first
    assert (second["round"], second["bytes"], second["num_examples"]) == (2, 2728, 150)
    assert second["acknowledged"] is False


def test_a_receipt_that_comes_twice_is_noted_twice_as_both_have_left(tmp_path: Path) -> None:
    audit = TaskAudit(AuditLog(tmp_path / "audit.jsonl"), assignment(), "server")
    for _ in range(2):
        audit.record_sent(update(1), 2728, 150)
        audit.record_delivered(taken(update(1)))
    audit.record_dropped(lambda _: True)
    assert [line["round"] for line in lines(tmp_path / "audit.jsonl")] == [1, 1]


def test_what_finds_no_room_is_written_with_the_next_line_and_no_line_is_torn(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        audit = TaskAudit(AuditLog(disk / "audit.jsonl"), assignment(), "server")
        for number in range(1, 101):
            audit.record_sent(update(number), 2728, 150)
        audit.record_delivered(taken(update(1)))
        fill(disk / "ballast")
        with pytest.raises(OSError, match="No space left"):
            audit.record_dropped(lambda file: (file.round or 0) < 100)
        assert len(lines(disk / "audit.jsonl")) == 1
        (disk / "ballast").unlink()
        audit.record_delivered(taken(update(100)))
        assert [line["round"] for line in lines(disk / "audit.jsonl")] == [*range(1, 101)]


@pytest.fixture
def context(tmp_path: Path) -> Iterator[NodeContext]:
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
        closing(Outbox.open(Identity("a", Role.CLIENT), None, Spool(tmp_path).open())) as outbox,
        Writer() as writer,
    ):
        servers = ForkServers(selector)
        yield NodeContext(
            config=config,
            spool=Spool(tmp_path).open(),
            outbox=outbox,
            writer=writer,
            server=SERVER,
            fork_servers=servers,
            audit_log=AuditLog(tmp_path / "audit.jsonl"),
            announce=lambda: None,
            metrics=NodeMetrics(),
        )
        servers.close()


def test_what_a_restart_finds_of_a_task_that_is_stopped_then_may_have_left(context: NodeContext) -> None:
    task = assignment()
    folder = context.spool.folder(Kind.LOCALPARAM) / task.task
    for number in (1, 2):
        write_update(folder, Update(base_round=number, chunk=0, num_examples=150), np.zeros(10, np.float32))
    (folder / "round-000002" / "chunk-000000.npy").unlink()  # somebody wanted room
    write_array(
        context.spool.path(FileId(kind=Kind.TESTSET, task=task.task, part="data"), "a"), np.zeros((1, 2), np.float32)
    )
    running = NodeTask(task, context)
    running.stop("stopped by a user")
    while not running.ended:
        select.select([context.writer], [], [], 10)
        context.writer.dispatch()
    noted = lines(context.config.spool / "audit.jsonl")
    assert [(line["kind"], line.get("round"), line["acknowledged"]) for line in noted] == [
        ("localparam", 1, False),
        ("testset", None, False),
    ]
    assert not folder.exists()
