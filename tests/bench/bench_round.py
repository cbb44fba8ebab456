"""What a round costs beside its training: one node, one client, a tiny model, everything real and durable.

    python tests/bench/bench_round.py [ROUNDS]

Each round the server sends the model, the node trains one step and sends its update, the server writes the roster,
aggregates and commits. Nothing may wait for a timer: a polling interval would show as a step in the percentiles.
The floor beside it is the same number of durable small writes (file and folder synced) on the same disk.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from fedsim.settings import parse_settings
from fedsim.spool.durable import write_bytes
from fedsim.store import Store, open_store
from fedsim.store.records import Task, UserRole, UserState
from fedsim.testing.local_cluster import LocalCluster, NodeSpec

DIGITS = {"name": "digits", "path": "digits", "format": "digits", "share": True}
WRITES_IN_A_ROUND = 8
"""Model and metadata at the node, update and metadata twice, roster, model and record: what must be durable."""


def run(store: Store, rounds: int) -> Task:
    """Train to the end."""
    settings, _ = parse_settings(
        {
            "dataset": "digits",
            "model": "logistic",
            "partition": "iid",
            "num_clients": 1,
            "fraction_train": 1,
            "local_epochs": 1,
            "local_batch_size": 10_000,
            "num_rounds": rounds,
            "evaluate_every": rounds,
            "save_every": rounds,
            "num_nodes": 1,
        }
    )
    name = f"bench-{uuid4().hex}"
    user = store.users.create(name, "-", role=UserRole.USER, state=UserState.ACTIVE, language="en", now=time.time())
    number = store.tasks.create(user.id, settings, uuid4().hex, time.time()).number
    while not (task := store.tasks.get(number)) or not task.state.finished:
        time.sleep(0.5)  # from outside: nothing of what is measured waits for it
    if task.state != "completed":
        raise SystemExit(f"the task {task.state}: {task.reason}")
    return task


def seconds_of(task: Task) -> float:
    """How long a task took from its claim to its end."""
    if task.started_at is None or task.finished_at is None:
        raise SystemExit(f"task {task.number} has no beginning or no end")
    return task.finished_at - task.started_at


def durable_writes(folder: Path, repeats: int) -> list[float]:
    """The floor: how long a round's durable writes take, in seconds."""
    lengths = []
    for number in range(repeats):
        started = time.perf_counter()
        for name in range(WRITES_IN_A_ROUND):
            write_bytes(folder / f"{number % 4}-{name}", b"x" * 2600)
        lengths.append(time.perf_counter() - started)
    return lengths


def show(name: str, lengths: list[float]) -> None:
    """One line of the table, in milliseconds."""
    ordered = sorted(lengths)
    p95 = ordered[int(len(ordered) * 0.95)]
    print(f"{name:34} median {statistics.median(ordered) * 1e3:7.1f} ms   95 % {p95 * 1e3:7.1f} ms")


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as place:
        folder = Path(place)
        data = folder / "data"
        data.mkdir()
        before = durable_writes(folder, 50)
        with LocalCluster(folder / "lab", [NodeSpec("node-a", data, [DIGITS])]) as lab:
            store = open_store(lab.database)
            first = run(store, 1)
            task = run(store, rounds)
            lengths = [record.seconds["all"] for record in store.rounds.of_task(task.number)[2:]]
            later = run(store, 1)
            store.close()
        show(f"round without training ({rounds})", lengths)
        print(f"{'a task of one round, the first':34} {seconds_of(first) * 1e3:14.1f} ms")
        print(f"{'the same, later':34} {seconds_of(later) * 1e3:14.1f} ms")
        show(f"floor: {WRITES_IN_A_ROUND} durable small writes", before + durable_writes(folder, 50))


if __name__ == "__main__":
    main()
