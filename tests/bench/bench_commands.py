"""Commands and daemons: the time of `fedsim --help`, the memory of receiver and web, what they import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.lab import tiny_lab
from harness.measure import Options, bench_folder, interleaved, timed
from harness.memory import tree, usage
from harness.results import Bar, Row, at_most, compare

MEGABYTE = 1_000_000
HELP_SECONDS = 0.3
MOST_BYTES = {"receiver": 80 * MEGABYTE, "web": 110 * MEGABYTE}
HEAVY = ("torch", "scipy")


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    command = str(Path(sys.executable).with_name("fedsim"))
    ways = {
        "ours": lambda: timed(lambda: subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)),
        "python": lambda: timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)),
    }
    found = interleaved(ways, options.repeats)
    bar = at_most(HELP_SECONDS, "python")
    yield compare("fedsim --help", found["ours"], found["python"], against="python -c pass", bar=bar)
    with bench_folder() as folder, tiny_lab(folder, 1) as lab:
        lab.api.get("/tasks").raise_for_status()
        for name, most in MOST_BYTES.items():
            pids = [pid for group in tree({name: lab.processes[name].pid}).values() for pid in group]
            largest = max(usage(pid).pss for pid in pids)
            yield Row(f"memory of the {name}", largest, "B", bar=at_most(most), note="PSS of its largest process")
            mapped = "\n".join(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in pids)
            heavy = sum(f"/{package}/" in mapped for package in HEAVY)
            yield Row(f"heavy packages loaded by the {name}", heavy, bar=Bar("figure", "≤", 0), note=", ".join(HEAVY))
