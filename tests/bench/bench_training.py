"""Rounds of local training a second, on one thread, beside the bare loop where that is at hand.

    python tests/bench/bench_training.py [repeats]

The setting is S1 of the floors: 100 clients of 90 MNIST-like images, 10 a round, 2NN, 5 epochs, batches of 10. A round
here is the whole round of `simulate`: cohort, chunks, training, mean, aggregation and digest.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fedsim.learning.engine import make_deterministic
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings

FLOORS = Path(os.environ.get("FEDSIM_FLOORS") or Path(__file__).parents[3] / "shared" / "floors")
ROUNDS = 20


def fedsim_round_seconds() -> float:
    """The median round after the first, in seconds."""
    rng = np.random.default_rng(0)
    # As many dark pixels as handwriting has; what they show does not matter to the time.
    features = rng.integers(256, size=(9000, 28, 28), dtype=np.uint8) * (rng.random((9000, 28, 28)) < 0.2)
    dataset = DataSet(Examples(features.astype(np.uint8), rng.integers(10, size=9000), 255.0), None, 10)
    settings = TaskSettings(partition="iid", local_learning_rate=0.05, num_rounds=ROUNDS)
    marks: list[float] = []
    simulate(settings, dataset, on_round=lambda _: marks.append(time.perf_counter()))
    return statistics.median(np.diff(marks)[1:].tolist())


def floor_round_seconds() -> float | None:
    """The same of the bare loop, run by itself; None where it is not at hand."""
    if not (FLOORS / "sim_loop.py").is_file():
        return None
    command = [sys.executable, "sim_loop.py", "plain", "S1", "1", "1"]
    done = subprocess.run(command, cwd=FLOORS, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.split("@@")[-1])["steady_round_s"])


def main() -> None:
    """Measure both in turn, print medians as one JSON line."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    make_deterministic(1)
    ours, floors = [], []
    for _ in range(repeats):
        ours.append(fedsim_round_seconds())
        floor = floor_round_seconds()
        if floor is not None:
            floors.append(floor)
    result = {"setting": "S1", "round_seconds": round(statistics.median(ours), 4)}
    result["rounds_per_second"] = round(1 / result["round_seconds"], 2)
    if floors:
        result["floor_round_seconds"] = round(statistics.median(floors), 4)
        result["times_floor"] = round(result["round_seconds"] / result["floor_round_seconds"], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
