"""Asynchronous rounds over two nodes, one of them slow: none waits for it, kills lose nothing, the record is enough."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_support import DIGITS, Platform, digits_lab, small_settings

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.spool.files import metadata_path

UPDATE = re.compile(r"round-(\d+)/.*client-(\d+)\.npy$")
ROUNDS = 16
BUFFERED: dict[str, Any] = {
    "strategy": "fedbuff",
    "strategy_options": {"buffer_size": 4, "concurrency": 4, "max_staleness": 100},
    "local_epochs": 10,
    "num_rounds": ROUNDS,
    "save_every": ROUNDS,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("buffered")) as lab:
        yield lab


def record_of(lab: Platform, number: int) -> dict[str, list[list[int]]]:
    """What each round summed, as the JSON next to the last checkpoint says."""
    checkpoint = lab.server_spool / "checkpoints" / f"task-{number}" / f"round-{ROUNDS:04d}.json"
    found: dict[str, list[list[int]]] = json.loads(checkpoint.read_text())["buffered"]
    return found


def updates_in(folder: Path) -> set[tuple[int, int]]:
    """The complete updates in a folder, as (round in which they began, client)."""
    return {
        (int(match[1]), int(match[2]))
        for path in folder.glob("round-*/*.npy")
        if (match := UPDATE.search(str(path))) and metadata_path(path).exists()
    }


def kill_holding_updates(lab: Platform, name: str, folder: Path) -> set[tuple[int, int]]:
    """Kill a daemon while there are updates in its folder; returns them."""
    while True:
        lab.await_row(lambda: updates_in(folder) or None, what=f"for updates in {folder}")
        os.kill(lab.processes[name].pid, signal.SIGSTOP)
        found = updates_in(folder)
        if found:
            lab.kill(name)
            return found
        os.kill(lab.processes[name].pid, signal.SIGCONT)


def test_rounds_wait_for_no_slow_node_kills_lose_nothing_and_the_record_gives_the_same_bytes(
    lab: Platform, tmp_path: Path
) -> None:
    number = lab.submit(**BUFFERED)
    uid = lab.task(number).uid
    lab.await_round(number, 2)
    stopped = lab.workers("node-b")
    for worker in stopped:
        worker.send_signal(signal.SIGSTOP)
    lab.await_round(number, 6)  # with the updates of node-a alone
    on_node = kill_holding_updates(lab, "node-a", lab.node_spool("node-a") / "localparam" / uid)
    lab.start("node-a")
    lab.await_round(number, lab.task(number).round + 2)
    for worker in stopped:
        worker.send_signal(signal.SIGCONT)
    on_server = kill_holding_updates(lab, "server", lab.server_spool / "localparam" / uid)
    lab.start("server")
    task = lab.completed(number)

    record = record_of(lab, number)
    assert sorted(map(int, record)) == list(range(1, ROUNDS + 1))
    assert all(len(summed) == 4 for summed in record.values())
    rows = {row.round: [list(one) for one in row.buffered] for row in lab.store.rounds.of_task(number) if row.round}
    assert rows == {int(at): summed for at, summed in record.items()}, "the database has the same record"
    used = Counter((base, client) for summed in record.values() for base, client in summed)
    assert max(used.values()) == 1, "an update counts once"
    assert on_node | on_server <= used.keys(), "what was on disk when a daemon was killed counts"
    stale = [int(at) - base for at, summed in record.items() for base, _ in summed]
    assert max(stale) >= 3, "what node-b had begun before it was stopped counted later"
    assert {client >= 10 for _, client in used} == {False, True}, "both nodes took part"

    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), tmp_path)
    again = simulate(small_settings(**BUFFERED), dataset, placement=[(0, 10), (10, 10)], replay=record)
    assert [row.digest for row in lab.store.rounds.of_task(number)] == [result.digest for result in again.rounds]
    assert again.digest == task.digest


def test_what_does_not_combine_is_refused_at_submission(lab: Platform) -> None:
    answer = lab.api.post("/tasks", json={"dataset": "digits", "strategy": "fedbuff", "sampler": "over_selection"})
    assert answer.status_code == 422
    assert "over_selection draws cohorts: choose uniform" in answer.text
