"""Rounds with models of 100 MB and more, four nodes, next to no training: time and the memory of each process.

The floor moves, writes and syncs the same files and does nothing else: the model to four nodes, their updates written
there, the updates to the server, the new model written. `--large` adds 1 GB.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from harness.bare import BareReceivers, Stream
from harness.lab import processes, run_task, sized_mlp, steady, task_settings, tiny_lab
from harness.measure import Options, bench_folder, interleaved, timed
from harness.memory import MemoryWatch, Usage
from harness.results import Row, at_most, compare, ratio_at_most
from platform_support import Platform
from transfer_support import model_file

NODES, QUICK_NODES = 4, 2
MEGABYTE = 1_000_000
SIZES, QUICK_SIZES, LARGE = (100 * MEGABYTE, 300 * MEGABYTE), (20 * MEGABYTE,), 1000 * MEGABYTE
ROUNDS = 4
MEMORY_ROUNDS = 2
WRITE_BYTES = 4 * 2**20
SERVER_BYTES = 200 * MEGABYTE


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    sizes = QUICK_SIZES if options.quick else (*SIZES, LARGE) if options.large else SIZES
    for size in sizes:
        with bench_folder() as folder, tiny_lab(folder, QUICK_NODES if options.quick else NODES) as lab:
            yield from of_size(lab, folder, size, options)


def of_size(lab: Platform, folder: Path, size: int, options: Options) -> Iterator[Row]:
    """The rows of one size."""
    model, exact = sized_mlp(size)
    nodes = len(lab.nodes)
    settings = task_settings(nodes, ROUNDS, **model)
    source = folder / "m.npy"
    model_file(source, exact // 4)
    with BareReceivers(nodes) as bare:
        ways = {
            "ours": lambda: statistics.median(steady(run_task(lab, settings)[1])),
            "bare": lambda: bare_round(bare, nodes, source, folder),
        }
        found = interleaved(ways, options.repeats, warm_up=0)
    source.unlink()
    what = f"{size // MEGABYTE} MB, {nodes} nodes"
    floor = "bare transfer, writing, fsync"
    yield compare(f"a round, {what}", found["ours"], found["bare"], against=floor, bar=ratio_at_most(1.5))
    yield from memory(lab, model, exact, what)


def memory(lab: Platform, model: dict[str, Any], size: int, what: str) -> Iterator[Row]:
    """The memory of a task, beyond that of a task with a tiny model where a bar says so."""
    tiny = watched(lab, {"model": "logistic"})
    peaks = watched(lab, model)
    nodes = [name for name in peaks.peaks if name.startswith("node-")]
    trainers = [name for name in nodes if name.endswith(" workers")]
    idle = max(largest(tiny, name).whole_anonymous for name in trainers)
    worker = max(largest(peaks, name).whole_anonymous for name in trainers)
    yield Row(
        f"a node's worker beyond an idle one, {what}",
        worker - idle,
        "B",
        "the model",
        size,
        bar=ratio_at_most(2.3),
        note="anonymous, peak",
    )
    together = sum((peaks.peaks[name] for name in nodes), Usage())
    yield Row(f"all nodes' memory, {what}", together.pss, "B", note="sum of peaks, PSS")
    daemons = peaks.peaks["server"] + peaks.peaks["receiver"]
    yield Row(f"server and receiver, {what}", daemons.anonymous, "B", bar=at_most(SERVER_BYTES), note="anonymous")
    workers = largest(peaks, "server workers")
    idle_server = largest(tiny, "server workers").whole_anonymous
    yield Row(
        f"the server's largest worker beyond an idle one, {what}",
        workers.whole_anonymous - idle_server,
        "B",
        "the model",
        size,
        bar=ratio_at_most(1.2),
        note="aggregates and tests; anonymous, peak",
    )


def watched(lab: Platform, model: dict[str, Any]) -> MemoryWatch:
    """The peaks of a short task, whose time is not measured."""
    with MemoryWatch(lambda: processes(lab)) as watch:
        run_task(lab, task_settings(len(lab.nodes), MEMORY_ROUNDS, **model))
    return watch


def largest(watch: MemoryWatch, group: str) -> Usage:
    """The largest peaks of a single process of a group."""
    peak = Usage()
    for found in watch.process_peaks[group].values():
        peak = peak.largest(found)
    return peak


def bare_round(bare: BareReceivers, nodes: int, source: Path, folder: Path) -> float:
    """The floor of a round, in seconds."""
    streams = [Stream(number, source, folder / f"bare-{number}") for number in range(nodes)]
    down = bare.seconds(streams, fsync=True)
    with ThreadPoolExecutor(nodes) as pool:
        targets = [folder / f"written-{number}" for number in range(nodes)]
        at_nodes = timed(lambda: list(pool.map(lambda target: write_synced(source, target), targets)))
    up = bare.seconds(streams, fsync=True)
    new_model = timed(lambda: write_synced(source, targets[0]))
    for target in targets:
        target.unlink()
    return down + at_nodes + up + new_model


def write_synced(source: Path, target: Path) -> None:
    """Write a file's bytes from its map, and sync them."""
    with source.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped, memoryview(mapped) as view:
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for start in range(0, len(view), WRITE_BYTES):
            with view[start : start + WRITE_BYTES] as block:
                os.write(out, block)
        os.fsync(out)
        os.close(out)
