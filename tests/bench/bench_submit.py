"""From submission to the start of the first round, four nodes just started; then `fedsim demo` as a whole."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.lab import IMAGE, run_task, task_settings, tiny_lab
from harness.measure import FLOORS, Options, bench_folder, timed
from harness.results import Row, at_most
from platform_support import Platform

NODES, QUICK_NODES = 4, 2
LATER_TASKS = 5
DEMO_SECONDS = 12.0


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    first, later = [], []
    nodes = QUICK_NODES if options.quick else NODES
    for _ in range(1 if options.quick else options.repeats):
        with bench_folder() as folder, tiny_lab(folder, nodes, shape=IMAGE) as lab:
            first.append(until_first_round(lab, nodes))
            later += [until_first_round(lab, nodes) for _ in range(1 if options.quick else LATER_TASKS)]
    note = f"{nodes} nodes"
    bar = at_most(1.0, "python")
    yield Row("from submit to the first round's start, just started", statistics.median(first), "s", bar=bar, note=note)
    yield Row("the same, a later task", statistics.median(later), "s", bar=bar, note=note)
    if options.quick:
        return
    yield Row("fedsim demo, from the command to the final accuracy", demo(), "s", bar=at_most(DEMO_SECONDS, "python"))


def until_first_round(lab: Platform, nodes: int) -> float:
    """The seconds from the task's row to the opening of its round 1."""
    task, rounds = run_task(lab, task_settings(nodes, 1, model="2nn"))
    return rounds[0].finished_at - rounds[0].seconds["all"] - task.created_at


def demo() -> float:
    """The seconds of `fedsim demo`, which ends with the task; on MNIST if it is next to the floors."""
    command = [str(Path(sys.executable).with_name("fedsim")), "demo"]
    environment = {"FEDSIM_DATA": str(FLOORS.parent / "data" / "mnist"), **os.environ}
    with bench_folder() as folder:
        return timed(
            lambda: subprocess.run(
                command, cwd=folder, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        )
