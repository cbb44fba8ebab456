"""The log of what leaves a node: complete, durable before anything is offered, chained, and repaired."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from selectors import DefaultSelector
from typing import Any

import numpy as np
import pytest
from presence import fill, small_disk
from test_task_machine_more import assignment

from fedsim.array_layout import Layout
from fedsim.client.audit_log import AuditLog, OfferedFile, OwnerDecision, audit_line
from fedsim.client.context import NodeContext
from fedsim.client.task import NodeTask
from fedsim.config import ClientConfig
from fedsim.metrics import NodeMetrics
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.writer import Writer
from fedsim.spool import hash_chain
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.hash_chain import ChainReader, HashChain
from fedsim.spool.layout import Spool
from fedsim.spool.updates import write_update
from fedsim.state_machines.node_events import SendUpdates
from fedsim.update import PARAMETERS, Update
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Outcome, Status
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


def test_a_log_is_read_once_when_it_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = three_lines(path)
    log.add(log.accept(assignment(), "server"))
    log.decide(assignment(), "server", OwnerDecision(True, "ada"))
    opened: list[Path] = []
    original = Path.open

    def noted(self: Path, *arguments: Any, **further: Any) -> Any:
        opened.append(self)
        return original(self, *arguments, **further)

    monkeypatch.setattr(Path, "open", noted)
    again = AuditLog(path).open()
    assert opened == [path], "in one pass"
    assert (again.head, [*again.accepted]) == (log.head, [assignment().task])
    assert again.decisions[assignment().digest].by == "ada"


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


class Disk:
    """A disk that loses, when the power fails, what was written to a file since its last fsync.

    A prefix of it, or zeros of its length, may be there all the same.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.durable: dict[Path, bytes] = {}
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            self.durable[path] = path.read_bytes()

    def after_power_cut(self, path: Path, rest: bytes) -> None:
        """What a file may contain after the power has failed: `rest` is what there is of the newest bytes."""
        path.write_bytes(self.durable[path] + rest)


@pytest.mark.parametrize("rest", ["nothing", "a part", "zeros"])
def test_a_power_cut_during_a_write_loses_no_line_of_a_file_that_was_offered(
    path: Path, monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    disk = Disk(monkeypatch)
    log = AuditLog(path).open()
    for number in range(1, 6):
        log.add([offered(number), offered(number + 100)])
        durable = disk.durable[path]
        assert [line.get("round") for line in lines(path)][-2:] == [number, number + 100]
        assert durable == path.read_bytes(), "what was added may be offered now"
        # The next write is under way when the power fails.
        with path.open("ab") as file:
            file.write(b'{"at": "20')
        disk.after_power_cut(path, {"nothing": b"", "a part": b'{"a', "zeros": b"\0" * 10}[rest])
        log = AuditLog(path).open()
        whole = [line for line in lines(path) if line["kind"] != "repair"]
        assert [line["round"] for line in whole] == [one for done in range(1, number + 1) for one in (done, done + 100)]
        assert HashChain(path).open() == []
        assert path.read_bytes().startswith(durable)


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
    update = Update(base_round=1, chunk=0, num_examples=150).with_arrays({PARAMETERS: np.zeros(10, np.float32)})
    write_update(folder, update, Layout({PARAMETERS: (10,)}))
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


def test_a_test_set_that_was_offered_twice_and_delivered_once_fails_no_task(context: NodeContext) -> None:
    task = assignment()
    running = NodeTask(task, context)
    running._restore(running._read())
    part = FileId(kind=Kind.TESTSET, task=task.task, part="data")
    path = context.spool.path(part, "a")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"data")
    running.transfer_ended(Outcome(SERVER, part, Status.DELIVERED))
    assert not path.exists()
    running.transfer_ended(Outcome(SERVER, part, Status.REFUSED, "source_missing", "it cannot be sent: No such file"))
    assert running.report.state == "loading"
    running.transfer_ended(Outcome(SERVER, part, Status.REFUSED, "too_large", "too large"))
    assert (running.report.state, "too large" in running.report.reason) == ("failed", True)


# ---------------------------------------------------------------- the reader


def add(path: Path, first: int, count: int) -> None:
    chain = HashChain(path)
    assert chain.open() == []
    chain.append({"number": number} for number in range(first, first + count))


def numbers(reader: ChainReader, before: int | None = None, limit: int = 3) -> list[int]:
    lines, _, problems = reader.read(before, limit)
    assert problems == []
    assert all(json.loads(line)["number"] == number for number, line in lines)
    return [number for number, _ in lines]


def test_the_reader_checks_what_was_added_and_reads_the_lines_that_are_wanted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ChainReader(path)
    assert reader.read(None, 3) == ([], 0, [])
    add(path, 1, 5)
    checked: list[int] = []
    check = HashChain.check

    def counted(self: HashChain, found: Iterable[bytes]) -> Any:
        found = [*found]
        checked.append(len(found))
        return check(self, found)

    assert numbers(reader) == [5, 4, 3]
    monkeypatch.setattr(HashChain, "check", counted)
    assert numbers(reader, 3) == [2, 1]
    assert numbers(reader, 1) == []
    assert checked == []
    with path.open("ab") as file:
        file.write(b'{"number": 6')  # a line that is being written
    assert numbers(reader) == [5, 4, 3]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - len(b'{"number": 6'))
    add(path, 6, 2)
    checked.clear()
    assert numbers(reader) == [7, 6, 5]
    assert reader.read(None, 1)[1] == 7
    assert sum(checked) <= 7


@pytest.mark.parametrize("change", ["same length", "shorter", "longer", "replaced", "hidden by an addition"])
def test_the_reader_finds_a_change_of_lines_that_it_has_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(hash_chain, "CHECK_SECONDS", -1.0 if change == "hidden by an addition" else 600.0)
    add(path, 1, 5)
    reader = ChainReader(path)
    assert numbers(reader) == [5, 4, 3]
    text = path.read_text()
    if change == "replaced":
        path.unlink()
    new = {"shorter": "", "longer": '"number": 2222'}.get(change, '"number": 7')
    path.write_text(text.replace('"number": 2', new))
    if change == "hidden by an addition":
        with path.open("a") as file:
            file.write(text.splitlines(keepends=True)[-1])
    assert any("line 2" in problem for problem in reader.read(None, 3)[2])
