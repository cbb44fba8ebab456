"""Runs fuzzers over the parsers, each in a process of its own: `make fuzz`, or `fuzz.py --seconds 600 yaml_files`.

Inputs that found new paths are kept in `build/fuzz/NAME`, and later runs begin with them; one that ends with an
unexpected exception is written there as `crash-…`. To run such a file again: `fuzz.py --one NAME FILE`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("frames", "headers", "npy", "messages", "yaml_files")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MAX_INPUT_BYTES = 4096
# An input that takes longer is a fault, too.
TIMEOUT_SECONDS = 10


def run_one(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris  # noqa: PLC0415 - instruments what is imported after it

    with atheris.instrument_imports(include=["fedsim"]):
        import parsers  # noqa: PLC0415 - see above
    atheris.Setup([sys.argv[0], *arguments], parsers.TARGETS[name])
    atheris.Fuzz()


def run(name: str, folder: Path, limit: list[str]) -> bool:
    """Fuzz one target in a process of its own; returns whether nothing was found."""
    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    import parsers  # noqa: PLC0415 - not before `atheris` in the process that fuzzes

    for number, seed in enumerate(parsers.SEEDS[name]()):
        (corpus / f"seed-{number}").write_bytes(seed)
    command = [
        *(sys.executable, str(HERE / "fuzz.py"), "--one", name, str(corpus), *limit),
        *(f"-max_len={MAX_INPUT_BYTES}", f"-timeout={TIMEOUT_SECONDS}", f"-artifact_prefix={corpus}/"),
    ]
    started = time.monotonic()
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    runs = re.findall(r"Done (\d+) runs|stat::number_of_executed_units: (\d+)", ended.stdout)
    count = "".join(runs[-1]) if runs else "?"
    passed = ended.returncode == 0
    print(f"{name:12} {count:>10} inputs {time.monotonic() - started:6.1f} s  {'passed' if passed else 'FAILED'}")  # noqa: T201
    if not passed:
        print(ended.stdout[-4000:])  # noqa: T201
    return passed


def main(arguments: list[str]) -> int:
    """Fuzz the named targets, or all, one after the other; returns the exit code."""
    if arguments[:1] == ["--one"]:
        run_one(arguments[1], arguments[2:])
        return 0
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    options.add_argument("--seconds", type=int, default=60, help="for each (default: %(default)s)")
    options.add_argument("--runs", type=int, help="this many inputs instead of seconds")
    options.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    given = options.parse_args(arguments)
    if unknown := sorted(set(given.names) - set(NAMES)):
        options.error(f"unknown: {', '.join(unknown)} (available: {', '.join(NAMES)})")
    limit = [f"-max_total_time={given.seconds}"] if given.runs is None else [f"-runs={given.runs}"]
    passed = [run(name, given.folder, limit) for name in given.names or NAMES]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
