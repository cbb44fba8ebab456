"""Many nodes: 200 of them spoken by a load generator, a model of 0.8 MB, next to moving and syncing the same files.

The processor time of the generator in a round, divided by the cores, is subtracted: it is no part of the platform. The
floor sends the model to one receiver process for each core, as often as there are nodes, and as many updates back,
which are synced; it hashes nothing.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from harness.bare import BareReceivers, Stream
from harness.lab import IMAGE, many_nodes_lab, processes, receiver_of, run_task, steady, task_settings
from harness.load_generator import LoadGenerator, PreparedUpdate
from harness.measure import Options, bench_folder, interleaved
from harness.memory import MemoryWatch
from harness.results import Row, at_most, compare, ratio_at_most
from platform_support import Platform
from transfer_support import model_file

NODES, QUICK_NODES = 200, 8
PARAMETERS = 199_210
ROUNDS, QUICK_ROUNDS = 8, 4
MOST_THREADS, SPARE_DESCRIPTORS, DESCRIPTORS_EACH = 32, 64, 4
MEGABYTE = 1_000_000


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    count = QUICK_NODES if options.quick else NODES
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    with bench_folder() as folder, many_nodes(folder, count) as (lab, source):
        settings = task_settings(count, rounds, model="2nn")
        cores = len(os.sched_getaffinity(0))
        with BareReceivers(cores) as bare:
            found = interleaved(
                {"ours": lambda: net_round(lab, settings), "bare": lambda: bare_round(bare, count, source, folder)},
                options.repeats,
                warm_up=0,
            )
        with MemoryWatch(lambda: processes(lab)) as watch:
            run_task(lab, settings)
        threads, descriptors = used(lab)
    what = f"{count} nodes, 0.8 MB"
    floor, bar = "moving and syncing the same files", ratio_at_most(3)
    note = "the generator's processor time subtracted"
    yield compare(f"a round, {what}", found["ours"], found["bare"], against=floor, bar=bar, note=note)
    for name in ("server", "receiver"):
        yield Row(
            f"memory of the {name} grows in a task by, {what}", watch.growth(name), "B", bar=at_most(64 * MEGABYTE)
        )
    yield Row(f"threads of server and receiver, {what}", threads, bar=at_most(MOST_THREADS))
    most = SPARE_DESCRIPTORS + DESCRIPTORS_EACH * count
    yield Row(f"descriptors of server and receiver, {what}", descriptors, bar=at_most(most))


@contextmanager
def many_nodes(folder: Path, count: int) -> Iterator[tuple[Platform, Path]]:
    """A lab whose nodes are spoken by the generator, and the file that is their update."""
    lab, config = many_nodes_lab(folder, count, shape=IMAGE)
    source = folder / "update.npy"
    update = PreparedUpdate(source, model_file(source, PARAMETERS))
    with lab, LoadGenerator(config, [node.name for node in lab.nodes], receiver_of(lab), update):
        yield lab, source


def net_round(lab: Platform, settings: dict[str, object]) -> float:
    """The median round without the processor time of the generator, which is this process's."""
    before = time.process_time()
    _, rounds = run_task(lab, settings)
    spent = (time.process_time() - before) / len(rounds) / len(os.sched_getaffinity(0))
    return max(0.0, statistics.median(steady(rounds)) - spent)


def bare_round(bare: BareReceivers, count: int, source: Path, folder: Path) -> float:
    """Move the model as often as there are nodes, then as many updates, which are synced."""
    streams = [Stream(number % bare.count, source, folder / f"bare-{number}") for number in range(count)]
    return bare.seconds(streams) + bare.seconds(streams, fsync=True)


def used(lab: Platform) -> tuple[int, int]:
    """Threads and descriptors of the server and its receiver."""
    found = [psutil.Process(lab.processes[name].pid) for name in ("server", "receiver")]
    return sum(one.num_threads() for one in found), sum(one.num_fds() for one in found)
