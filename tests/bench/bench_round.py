"""A round without training: 0.8 MB of parameters, four nodes, all daemons real, committed on disk.

The floor is the durable writing of the same files: at the nodes, at once, the model, the update and their metadata,
then the updates at the server, then the roster, the new model and its record. A polling interval would show as a step
between the median and the 95th percentile.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.lab import IMAGE, run_task, steady, task_settings, tiny_lab
from harness.measure import SMALL_FILE, Options, bench_folder, interleaved, timed
from harness.results import Row, at_most

from fedsim.spool.durable import write_bytes

NODES, QUICK_NODES = 4, 2
MODEL_BYTES = 199_210 * 4
"""Of the 2NN on images of 28 × 28 pixels."""
ROUNDS, QUICK_ROUNDS = 40, 5
BAR_SECONDS = 0.015


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    nodes = QUICK_NODES if options.quick else NODES
    settings = task_settings(nodes, rounds, model="2nn")
    with bench_folder() as folder, tiny_lab(folder, nodes, shape=IMAGE) as lab:
        lengths: list[float] = []

        def ours() -> float:
            one = steady(run_task(lab, settings)[1])
            lengths.extend(one)
            return statistics.median(one)

        def floor() -> float:
            return statistics.median(timed(lambda: durable_files(folder, nodes)) for _ in range(rounds))

        found = interleaved({"ours": ours, "floor": floor}, options.repeats)
        task, _ = run_task(lab, task_settings(nodes, 1, model="2nn"))
    beyond = [one - other for one, other in zip(found["ours"], found["floor"], strict=True)]
    median, floor_median = statistics.median(found["ours"]), statistics.median(found["floor"])
    ordered = sorted(lengths)
    note = f"0.8 MB, {nodes} nodes"
    yield Row("a round without training", median, "s", "its files, written durably", floor_median, note=note)
    yield Row(
        "the same beyond the floor", statistics.median(beyond), "s", bar=at_most(BAR_SECONDS, "writes"), note=note
    )
    p95 = ordered[int(len(ordered) * 0.95)]
    yield Row("95th percentile of the rounds", p95, "s", "the median", median, note=note)
    if task.started_at is not None and task.finished_at is not None:
        yield Row("a task of one such round, from claim to end", task.finished_at - task.started_at, "s")


def durable_files(folder: Path, nodes: int) -> None:
    """Write the files of one round, each synced with its folder."""
    model = bytes(MODEL_BYTES)

    def node(number: int) -> None:
        for name in ("globalparam", "localparam"):
            write_bytes(folder / f"{name}-{number}", model)
            write_bytes(folder / f"{name}-{number}.json", SMALL_FILE)

    def update(number: int) -> None:
        write_bytes(folder / f"received-{number}", model)
        write_bytes(folder / f"received-{number}.json", SMALL_FILE)

    with ThreadPoolExecutor(nodes) as pool:
        for part in (node, update):
            list(pool.map(part, range(nodes)))
    write_bytes(folder / "roster", SMALL_FILE)
    write_bytes(folder / "model", model)
    write_bytes(folder / "round", SMALL_FILE)
