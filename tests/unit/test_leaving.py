"""The log of what left a node: nothing that may have left is missing there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from test_course_more import assignment

from fedsim.client.leaving import Leaving, LeavingLog
from fedsim.spool.files import FileId, Kind
from fedsim.wire.peer import Peer
from fedsim.wire.sender import Outcome, Status

TASK = "5" * 32


def update(round_number: int) -> FileId:
    return FileId(kind=Kind.LOCALPARAM, task=TASK, round=round_number, chunk=0)


def taken(file: FileId) -> Outcome:
    return Outcome(Peer("server", "127.0.0.1", 9001), file, Status.DELIVERED, bytes_sent=1234)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_update_whose_receipt_never_came_is_noted_when_it_is_cleared(tmp_path: Path) -> None:
    leaving = Leaving(LeavingLog(tmp_path / "left.jsonl"), assignment(), "server")
    for number in (1, 2, 3):
        leaving.goes(update(number), 2728, 150)
    leaving.taken(taken(update(1)))
    leaving.forget(lambda file: (file.round or 0) <= 2)
    first, second = lines(tmp_path / "left.jsonl")
    assert (first["round"], first["bytes"], first["num_examples"]) == (1, 1234, 150)
    assert "acknowledged" not in first
    assert (second["round"], second["bytes"], second["num_examples"]) == (2, 2728, 150)
    assert second["acknowledged"] is False


def test_a_receipt_that_comes_twice_is_noted_twice_as_both_have_left(tmp_path: Path) -> None:
    leaving = Leaving(LeavingLog(tmp_path / "left.jsonl"), assignment(), "server")
    for _ in range(2):
        leaving.goes(update(1), 2728, 150)
        leaving.taken(taken(update(1)))
    leaving.forget(lambda _: True)
    assert [line["round"] for line in lines(tmp_path / "left.jsonl")] == [1, 1]
