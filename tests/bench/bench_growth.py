"""How cost grows: the time of a round, and memory, with nodes, with the size of the model and with the cohort.

Nodes are spoken by the load generator, as in the benchmark `nodes`; models are trained by two real nodes; cohorts run
in `simulate`, in a process of its own. The curves are drawn in `build/bench/growth.svg`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from bench_nodes import many_nodes
from bench_training import images, simulated
from harness.lab import processes, run_task, sized_mlp, steady, task_settings, tiny_lab
from harness.measure import RESULTS, Options, bench_folder, machine
from harness.memory import MemoryWatch, Usage
from harness.plot import Curve, Panel, svg
from harness.results import Row

from fedsim.settings import TaskSettings

MEGABYTE = 1_000_000
NODES, QUICK_NODES = (2, 5, 20, 50, 100, 200), (2, 4)
SIZES, QUICK_SIZES, LARGE = (0.8, 10.0, 100.0, 300.0), (0.8, 4.0), 1000.0
COHORTS, QUICK_COHORTS = (10, 100, 1000, 10_000), (10, 40)
REAL_NODES = 2
ROUNDS = 5
EXAMPLES_EACH = 10

Point = tuple[float, float, float]
"""A size, the seconds of a round, bytes of memory."""


def run(options: Options) -> Iterable[Row]:
    """Measure, and draw the curves."""
    sizes = QUICK_SIZES if options.quick else (*SIZES, LARGE) if options.large else SIZES
    panels = []
    for axis, unit, memory, points in (
        ("nodes", "", "memory of server and receiver", map(with_nodes, QUICK_NODES if options.quick else NODES)),
        ("size of the model", "B", "memory of a node", (with_size(size * MEGABYTE) for size in sizes)),
        ("cohort", "", "memory of the process", map(with_cohort, QUICK_COHORTS if options.quick else COHORTS)),
    ):
        found: list[Point] = []
        for size, seconds, used in points:
            found.append((size, seconds, used))
            what = f"{axis} {size / MEGABYTE:g} MB" if unit else f"{axis} {size:.0f}"
            yield Row(f"a round, {what}", seconds, "s")
            yield Row(f"{memory}, {what}", used, "B")
        times = Curve("a round", "s", tuple((size, seconds) for size, seconds, _ in found))
        memories = Curve(memory, "B", tuple((size, used) for size, _, used in found))
        panels.append(Panel(axis, unit, (times, memories)))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "growth.svg").write_text(svg(panels, machine()), encoding="utf-8")


def with_nodes(count: int) -> Point:
    """A model of 0.8 MB and this many nodes; the memory of server and receiver, with their workers."""
    with bench_folder() as folder, many_nodes(folder, count) as (lab, _):
        settings = task_settings(count, ROUNDS, model="2nn")
        _, rounds = run_task(lab, settings)
        with MemoryWatch(lambda: processes(lab)) as watch:
            run_task(lab, settings)
    used = sum((found for name, found in watch.peaks.items() if not name.startswith("web")), Usage())
    return count, statistics.median(steady(rounds)), used.pss


def with_size(size: float) -> Point:
    """A model of about this many bytes; the memory of one node, with its receiver and worker."""
    model, exact = sized_mlp(int(size))
    with bench_folder() as folder, tiny_lab(folder, REAL_NODES) as lab:
        settings = task_settings(REAL_NODES, ROUNDS, **model)
        _, rounds = run_task(lab, settings)
        with MemoryWatch(lambda: processes(lab)) as watch:
            run_task(lab, settings)
    used = sum((found for name, found in watch.peaks.items() if name.startswith("node-0")), Usage())
    return exact, statistics.median(steady(rounds)), used.pss


def with_cohort(cohort: int) -> Point:
    """A cohort of this many clients in `simulate`; the largest resident size of its process."""
    command = [sys.executable, __file__, str(cohort)]
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent / 'integration'}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, used = json.loads(done.stdout)
    return cohort, seconds, used


def main() -> None:
    """Measure one cohort in this process; prints seconds and bytes as JSON."""
    cohort = int(sys.argv[1])
    settings = TaskSettings(
        model="2nn",
        partition="iid",
        num_clients=cohort,
        fraction_train=1.0,
        local_epochs=1,
        num_rounds=ROUNDS,
        evaluate_every=ROUNDS,
        save_every=ROUNDS,
    )
    with MemoryWatch(lambda: {"this": [os.getpid()]}, interval=0.02) as watch:
        seconds = simulated(settings, images(cohort * EXAMPLES_EACH), 1)
    print(json.dumps([seconds, watch.peaks["this"].pss]))


if __name__ == "__main__":
    main()
