"""A kill loop: every process of a lab killed with SIGKILL, alone and several at once, again and again during one task.

The model, the rows and the audit logs must be those of an undisturbed task, and no log may contain an anomaly: a
traceback, an error, or a warning other than those that a killed peer, worker or database connection causes.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from platform_support import Platform, digits_lab

from fedsim.spool.hash_chain import HashChain

pytestmark = pytest.mark.timeout(900)
LONG: dict[str, Any] = {"local_epochs": 20, "num_rounds": 12}
NODES = ("node-a", "node-b")
WORKERS = [f"workers of {host}" for host in ("server", *NODES)]
VICTIMS = ["server", "receiver", "web", *NODES, *(f"{node}-receiver" for node in NODES), *WORKERS]
AT_ONCE = (1, 2, 3, 4, 5)
"""How many are killed at once, in turn."""
LINE = re.compile(r"\d\d:\d\d:\d\d \[(\w+) *\] (\S+)")
EXPECTED = {
    "connection_closed",
    "peer_unreachable",
    "waiting_for_database",
    "worker_died",
}
"""The warnings that a kill of another process causes."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    often = {"max_worker_restarts": 100}  # a worker that is killed too often in a row fails its task: another promise
    with digits_lab(tmp_path_factory.mktemp("kills"), server=often, client=often) as lab:
        yield lab


def batches(kills: int, seed: int) -> list[list[str]]:
    """Victims of `kills` kills, as they are killed at once: each equally often."""
    chance = random.Random(seed)
    order = [victim for _ in range(-(-kills // len(VICTIMS))) for victim in chance.sample(VICTIMS, len(VICTIMS))]
    found: list[list[str]] = []
    while (done := sum(map(len, found))) < kills:
        found.append(order[done : done + AT_ONCE[len(found) % len(AT_ONCE)]][: kills - done])
    return found


def kill(lab: Platform, victims: list[str]) -> None:
    """Kill them at once, and start the daemons among them again."""
    daemons = sorted({victim for victim in victims if victim not in WORKERS})
    workers = [worker for victim in victims if victim in WORKERS for worker in lab.workers(victim.split()[-1])]
    for process in [*workers, *(psutil.Process(lab.processes[name].pid) for name in daemons)]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:  # a worker that has ended
            continue
    for name in daemons:
        lab.kill(name)
    lab.start(*daemons)


def rows(lab: Platform, number: int) -> dict[str, Any]:
    """What is recorded of a task, without what time and transfers differ in."""
    task = lab.task(number)
    measured = {"seconds", "bytes_sent", "bytes_received", "finished_at"}
    return {
        "digest": task.digest,
        "metrics": task.metrics,
        "participation": task.participation,
        "rounds": [
            {name: value for name, value in asdict(record).items() if name not in measured}
            for record in lab.store.rounds.of_task(number)
        ],
        "checkpoints": [(saved.round, saved.digest, saved.size) for saved in lab.store.checkpoints.of_task(number)],
    }


def left(lab: Platform, node: str, number: int) -> set[tuple[Any, ...]]:
    """The files of a task that have left a node, by its audit log, whose lines must be whole and in a chain."""
    path = lab.node_spool(node) / "audit.jsonl"
    assert HashChain(path).open() == []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line for line in lines if line["kind"] == "repair"] == []
    about = ("kind", "round", "chunk", "client", "part", "num_examples", "bytes")
    return {tuple(line.get(name) for name in about) for line in lines if line["task"] == number}


def anomalies(folder: Path) -> list[str]:
    """The lines of logs that no kill explains."""
    found = []
    for path in sorted(folder.glob("*.log")):
        for line in path.read_text().splitlines():
            match = LINE.match(line)
            if match is None or (match[1] != "info" and not (match[1] == "warning" and match[2] in EXPECTED)):
                found.append(f"{path.stem}: {line}")
    return found


def disturbed_is_undisturbed(lab: Platform, strategy: str, kills: int) -> None:
    """Run a task undisturbed, and again with kills spread over its rounds; compare all that is left of both."""
    undisturbed, number = (lab.submit(strategy=strategy, **LONG) for _ in range(2))
    lab.completed(undisturbed)
    plan = batches(kills, seed=kills)
    for at, victims in enumerate(plan):
        lab.await_round(number, 1 + at * (LONG["num_rounds"] - 1) // len(plan))
        kill(lab, victims)
    lab.completed(number)
    assert rows(lab, number) == rows(lab, undisturbed)
    for node in NODES:
        assert left(lab, node, number) == left(lab, node, undisturbed)
    assert httpx.get(f"{lab.url}/healthz").status_code == 200
    assert anomalies(lab.folder / "log") == []


def test_fifteen_kills_change_no_byte_no_row_and_leave_no_anomaly(lab: Platform) -> None:
    disturbed_is_undisturbed(lab, "fedavg", sum(AT_ONCE))


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["fedavgm", "median", "scaffold"])
def test_hundreds_of_kills_change_no_byte_no_row_and_leave_no_anomaly(lab: Platform, strategy: str) -> None:
    disturbed_is_undisturbed(lab, strategy, 100)
