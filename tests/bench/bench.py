"""The benchmarks: `python tests/bench/bench.py [NAME ...] [--quick] [--large] [--peers]`, or `make bench`.

Without a name all of them run, each in a process of its own; an unknown name lists those that there are. The rows are
printed as one table and written to `build/bench/<name>.json`.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

sys.path.insert(1, str(Path(__file__).parent / "peers"))
sys.path.insert(1, str(Path(__file__).parents[1] / "integration"))

import structlog
from harness.measure import RESULTS, Calibration, Options, machine
from harness.results import NotHereError, Result, Row, line, print_results

HERE = Path(__file__).parent
EX_USAGE = 64
PEERS = "peer"
BENCHES = "bench"


class Bench(Protocol):
    """A module `bench_<name>.py`, or `peers/peer_<name>.py`."""

    def run(self, options: Options) -> Iterable[Row]:
        """Measure, and yield rows as soon as they are known."""


def names(kind: str = BENCHES) -> list[str]:
    """The names of all benchmarks, or of all comparisons with peers."""
    folder = HERE / "peers" if kind == PEERS else HERE
    return sorted(path.stem.removeprefix(f"{kind}_").replace("_", "-") for path in folder.glob(f"{kind}_*.py"))


def described() -> str:
    """The names with the first sentence of each."""
    lines = []
    for kind in (BENCHES, PEERS):
        for name in names(kind):
            path = (HERE / "peers" if kind == PEERS else HERE) / f"{kind}_{name.replace('-', '_')}.py"
            first = path.read_text(encoding="utf-8").removeprefix('"""').splitlines()[0]
            lines.append(f"  {name:20} {first}")
    return "\n".join(lines)


def kind_of(name: str) -> str:
    """Whether a name is a benchmark or a comparison with a peer; ends the program if it is neither."""
    for kind in (BENCHES, PEERS):
        if name in names(kind):
            return kind
    sys.stderr.write(f"unknown benchmark {name!r} (available:\n{described()})\n")
    raise SystemExit(EX_USAGE)


def measure(name: str, options: Options) -> Result:
    """Run one benchmark in this process; what it found before a failure is kept."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    bench: Bench = importlib.import_module(f"{kind_of(name)}_{name.replace('-', '_')}")  # type: ignore[assignment]
    calibration = Calibration()
    rows, failure, missing, started = [], "", "", time.monotonic()
    calibration.take()
    try:
        for row in bench.run(options):
            rows.append(row)
            sys.stderr.write(f"  {name}: {line(row)}\n")
    except NotHereError as error:
        missing = str(error)
    except Exception as error:  # noqa: BLE001 - a benchmark may fail in any way, the others run on
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}".splitlines()[0]
    calibration.take()
    seconds = time.monotonic() - started
    return Result(
        name, options.quick, machine(), calibration.seconds, calibration.scale, seconds, rows, failure, missing
    )


def run_all(chosen: list[str], arguments: list[str]) -> list[Result]:
    """Run each in a process of its own, one after the other."""
    results = []
    for name in chosen:
        print(f"{name} …", flush=True)
        path = RESULTS / f"{name}.json"
        path.unlink(missing_ok=True)
        subprocess.run([sys.executable, __file__, name, *arguments], stdout=subprocess.DEVNULL, check=False)
        if path.exists():
            results.append(Result.read(path))
        else:
            results.append(Result(name, "--quick" in arguments, machine(), {}, {}, 0.0, [], "its process died"))
    return results


def main() -> int:
    """Measure and print; the exit status says only whether all of them ran, not whether bars are held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks; all if omitted")
    parser.add_argument("--quick", action="store_true", help="few repetitions of small sizes, to try them out")
    parser.add_argument("--large", action="store_true", help="also what needs much memory and time")
    parser.add_argument("--peers", action="store_true", help="compare with other platforms and tools")
    given = parser.parse_args()
    chosen = given.names or names(PEERS if given.peers else BENCHES)
    for name in chosen:
        kind_of(name)
    if len(chosen) == 1:
        results = [measure(chosen[0], Options(given.quick, given.large))]
        results[0].write(RESULTS)
    else:
        results = run_all(chosen, [flag for flag in ("--quick", "--large") if getattr(given, flag[2:])])
    print_results(results)
    return int(any(result.failure for result in results))


if __name__ == "__main__":
    sys.exit(main())
