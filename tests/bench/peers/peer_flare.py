"""Rounds without training in NVIDIA FLARE's simulator, which runs each client in a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from environments import python_with, version_of
from harness.measure import Options, bench_folder
from harness.results import Row
from rounds import MEGABYTE, rows

PACKAGE = "nvflare"
APP = Path(__file__).parent / "flare"
BARS = {0: 50.0, 100 * MEGABYTE: 4.0, 300 * MEGABYTE: 2.5, 1000 * MEGABYTE: 4.0}
RUN_SECONDS = 1800.0


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    python = python_with(PACKAGE)
    name = f"NVIDIA FLARE {version_of(python, PACKAGE)}"
    yield from rows(name, lambda parameters, nodes, count: rounds(python, parameters, nodes, count), BARS, options)


def rounds(python: Path, parameters: int, nodes: int, count: int) -> list[float]:
    """Run a job; returns the seconds from one global model to the next, as the client sees them that had it last."""
    with bench_folder() as folder:
        marks = folder / "marks"
        marks.mkdir()
        sizes = [str(number) for number in (parameters, nodes, count + 1)]  # the last one has no next
        command = [str(python), "job.py", *sizes, str(marks), str(folder / "workspace")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(APP)}
        done = subprocess.run(
            command, env=environment, cwd=APP, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
        times = [[float(line) for line in path.read_text(encoding="utf-8").split()] for path in marks.iterdir()]
        if len(times) != nodes or any(len(one) != count + 1 for one in times):
            raise RuntimeError(
                f"NVIDIA FLARE ran {[len(one) for one in times]} rounds: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return [after - before for before, after in pairwise(max(moments) for moments in zip(*times, strict=True))]
