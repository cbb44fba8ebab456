"""Rounds of local training in the settings S1, S2 and S3 by pfl, in one process of one thread, as it simulates."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from bench_training import QUICK_ROUNDS, SETTINGS, TRAIN_IMAGES, Setting, images, simulated
from environments import python_with, version_of
from harness.measure import Options, interleaved
from harness.results import Row, compare

from fedsim.learning.engine import make_deterministic

PACKAGE = "pfl"
SCRIPT = Path(__file__).parent / "pfl_rounds.py"


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    python = python_with(PACKAGE)
    against = f"pfl {version_of(python, PACKAGE)}"
    dataset = images(TRAIN_IMAGES)
    make_deterministic(1)
    for name, setting in SETTINGS.items():
        if options.quick and name == "S3":
            continue
        count = QUICK_ROUNDS if options.quick else setting.rounds
        settings = setting.task_settings(count)
        ways = {"ours": partial(simulated, settings, dataset, 1), "pfl": partial(pfl, python, setting, count)}
        found = interleaved(ways, options.repeats, warm_up=0)
        note = "1 process, 1 thread each"
        yield compare(f"{name}, a round of simulate", found["ours"], found["pfl"], against=against, note=note)


def pfl(python: Path, setting: Setting, count: int) -> float:
    """The median round after the first, in seconds."""
    settings = setting.task_settings(count)
    given = {
        "model": settings.model,
        "clients": settings.num_clients,
        "cohort": settings.cohort_size,
        "epochs": settings.local_epochs,
        "rounds": count,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(python), str(SCRIPT), json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pfl ended with {done.returncode}: {done.stderr[-2000:]}")
    return statistics.median(json.loads(done.stdout.split("@@")[-1]))
