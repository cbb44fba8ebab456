"""Rounds of local training in the settings S1, S2 and S3, in `simulate` and on the platform, next to bare loops.

S1: 100 clients, 10 a round, 2NN, 5 epochs; S2: 1,000 clients, 100 a round, 1 epoch; S3: as S1 with McMahan's CNN and
1 epoch; all on 9,000 images of MNIST, batches of 10. The floors are run by themselves (`FEDSIM_FLOORS` names their
folder), with the same number of processes and threads. A round is the whole round, of `simulate` or of a task over two
nodes. There the floor is that of two processes, which divide each cohort evenly, and a round without training; cohorts
are listed, so that the nodes divide them evenly, too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from harness.lab import IMAGE, NAME, median_round, task_settings, tiny_lab
from harness.measure import FLOORS, Options, bench_folder, interleaved
from harness.results import Row, compare, ratio_at_most

from fedsim.learning.engine import make_deterministic
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings

TRAIN_IMAGES = 9000
INK = 0.2
"""Share of dark pixels, as handwriting has it; what they show does not matter to the time."""
QUICK_ROUNDS = 3
NO_FLOOR = "no floor here: set FEDSIM_FLOORS"
NODES = 2
COHORTS = 10
"""So many different ones are listed; then they repeat."""


@dataclass(frozen=True)
class Setting:
    """A setting of the floors: its command, and the same as settings of a task."""

    floor: tuple[str, ...]
    rounds: int
    task: dict[str, Any]

    def given(self, rounds: int) -> dict[str, Any]:
        """The settings of a task that is tested only at its end."""
        common = {"partition": "iid", "local_learning_rate": 0.05, "local_batch_size": 10}
        return {**common, **self.task, "num_rounds": rounds, "evaluate_every": rounds, "save_every": rounds}

    def over_nodes(self, rounds: int) -> dict[str, Any]:
        """The same as a task of the lab, each node with as many clients of each cohort."""
        given = self.given(rounds)
        held = given["num_clients"] // NODES
        each = round(given["num_clients"] * given["fraction_train"]) // NODES
        rng = np.random.default_rng(1)
        drawn = [
            [node * held + client for node in range(NODES) for client in sorted(rng.permutation(held)[:each].tolist())]
            for _ in range(COHORTS)
        ]
        cohorts = [" ".join(map(str, cohort)) for cohort in drawn]
        listed = {"sampler": "schedule", "sampler_options": {"cohorts": cohorts}}
        return {**given, **listed, "dataset": NAME, "num_nodes": NODES}


SETTINGS = {
    "S1": Setting(
        ("sim_fast.py", "dual", "S1"),
        20,
        {"model": "2nn", "num_clients": 100, "fraction_train": 0.1, "local_epochs": 5},
    ),
    "S2": Setting(
        ("sim_fast.py", "dual", "S2"),
        20,
        {"model": "2nn", "num_clients": 1000, "fraction_train": 0.1, "local_epochs": 1},
    ),
    "S3": Setting(
        ("sim_loop.py", "plain", "S3"),
        5,
        {"model": "cnn", "num_clients": 100, "fraction_train": 0.1, "local_epochs": 1},
    ),
}


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    dataset = images(TRAIN_IMAGES)
    make_deterministic(1)
    for name, setting in SETTINGS.items():
        if options.quick and name == "S3":
            continue
        rounds = QUICK_ROUNDS if options.quick else setting.rounds
        for count in (1, 2):
            settings = TaskSettings.model_validate(setting.given(rounds))
            ways = {"ours": partial(simulated, settings, dataset, count)}
            if (FLOORS / setting.floor[0]).is_file():
                ways["floor"] = partial(floor, setting, count)
            found = interleaved(ways, options.repeats, warm_up=0)
            what, note = f"{name}, a round of simulate", f"{count} process{'es' if count > 1 else ''}, 1 thread each"
            if "floor" in found:
                against = f"the bare loop ({' '.join(setting.floor)})"
                bar = ratio_at_most(1.1)
                yield compare(what, found["ours"], found["floor"], against=against, bar=bar, note=note)
            else:
                yield Row(what, statistics.median(found["ours"]), "s", NO_FLOOR, note=note)
    yield from over_nodes(options)


def over_nodes(options: Options) -> Iterable[Row]:
    """The rows of tasks over two nodes, each with one worker of one thread."""
    client = {"workers": 1, "threads_per_worker": 1}
    with bench_folder() as folder, tiny_lab(folder, NODES, shape=IMAGE, examples=TRAIN_IMAGES, client=client) as lab:
        for name, setting in SETTINGS.items():
            if options.quick and name == "S3":
                continue
            rounds = QUICK_ROUNDS if options.quick else setting.rounds
            without = task_settings(NODES, rounds, model=setting.task["model"], max_steps=1, local_batch_size=10)
            ways = {
                "ours": partial(median_round, lab, setting.over_nodes(rounds)),
                "empty": partial(median_round, lab, without),
            }
            if (FLOORS / setting.floor[0]).is_file():
                ways["floor"] = partial(floor, setting, NODES)
            found = interleaved(ways, options.repeats, warm_up=0)
            what, note = f"{name}, a round over two nodes", "2 processes, 1 thread each"
            if "floor" in found:
                bare = [sum(pair) for pair in zip(found["floor"], found["empty"], strict=True)]
                bar = ratio_at_most(1.15)
                yield compare(what, found["ours"], bare, against="the bare loop and an empty round", bar=bar, note=note)
            else:
                yield Row(what, statistics.median(found["ours"]), "s", NO_FLOOR, note=note)


def images(count: int) -> DataSet:
    """Images of 28 × 28 pixels with ten labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(count, 28, 28), dtype=np.uint8) * (rng.random((count, 28, 28)) < INK)
    return DataSet(Examples(pixels.astype(np.uint8), rng.integers(10, size=count), 255.0), None, 10)


def simulated(settings: TaskSettings, dataset: DataSet, count: int) -> float:
    """The median round after the first, in seconds."""
    marks: list[float] = []
    simulate(
        settings, dataset, on_round=lambda _: marks.append(time.perf_counter()), workers=count, engine=BatchedEngine
    )
    return statistics.median(np.diff(marks)[1:].tolist())


def floor(setting: Setting, count: int) -> float:
    """The same of the bare loop, one thread in each of `count` processes."""
    command = [sys.executable, *setting.floor, "1", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=FLOORS, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.split("@@")[-1])["steady_round_s"])
