"""How benchmarks measure: options, samples taken in turn, a calibration in the same run, the machine in words."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from fedsim.spool.durable import write_bytes
from fedsim.worker.host_jobs import processor_kind

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "build" / "bench"
FLOORS = Path(os.environ.get("FEDSIM_FLOORS") or ROOT.parent / "shared" / "floors")
"""The bare training loops that are run next to fedsim's, each by itself; they are no part of fedsim."""
REPEATS = 5
QUICK_REPEATS = 2
CALIBRATIONS = 5
DURABLE_WRITES = 8
SMALL_FILE = b"x" * 2600
GEMM_SIZE = 1024
REFERENCE = {"writes": 0.0043, "python": 0.035, "sgemm": 0.024}
"""Seconds of the calibration on two cores of an AMD EPYC, the shortest of many: bars in seconds are for these."""


@dataclass(frozen=True)
class Options:
    """What the command line chose.

    Attributes:
        quick: few repetitions of small sizes, to try a benchmark out.
        large: also the sizes that need much memory and time.
    """

    quick: bool = False
    large: bool = False

    @property
    def repeats(self) -> int:
        """How often each way is measured."""
        return QUICK_REPEATS if self.quick else REPEATS


def timed(work: Callable[[], object]) -> float:
    """How long something takes, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(ways: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Measure each way in turn, again and again; returns the values of each, without those of the warm-up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + repeats):
        for name, way in ways.items():
            value = way()
            if number >= warm_up:
                found[name].append(value)
    return found


class Calibration:
    """How fast the machine is at the moment; taken before and after what is measured."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in REFERENCE}
        rng = np.random.default_rng(0)
        self._matrix = rng.random((GEMM_SIZE, GEMM_SIZE), dtype=np.float32)

    def take(self) -> None:
        """Measure eight durable small writes, the start of a Python process, and one sgemm on one thread."""
        with tempfile.TemporaryDirectory(prefix="fedsim-bench-") as folder, threadpool_limits(1):
            ways = {
                "writes": lambda: timed(lambda: _durable_writes(Path(folder))),
                "python": lambda: timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)),
                "sgemm": lambda: timed(lambda: self._matrix @ self._matrix),
            }
            for name, seconds in interleaved(ways, CALIBRATIONS).items():
                self._seconds[name] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """The medians of all that was taken."""
        return {name: statistics.median(values) for name, values in self._seconds.items()}

    @property
    def scale(self) -> dict[str, float]:
        """How many times as long as on the reference machine each took."""
        return {name: seconds / REFERENCE[name] for name, seconds in self.seconds.items()}


def _durable_writes(folder: Path) -> None:
    for number in range(DURABLE_WRITES):
        write_bytes(folder / f"{number}", SMALL_FILE)


def machine() -> str:
    """The machine in words: processor, cores that may be used, memory, kernel, Python."""
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    versions = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{processor_kind()}, {cores} cores, {memory:.0f} GiB, {versions}"


@contextmanager
def bench_folder() -> Iterator[Path]:
    """A folder on the disk that `BENCH_DIR` names, or that temporary files are on."""
    with tempfile.TemporaryDirectory(prefix="fedsim-bench-", dir=os.environ.get("BENCH_DIR")) as folder:
        yield Path(folder)
