"""The tables of published results: `tests/tables/tables.py NAME [--rows PATTERN] [--jobs N]`, or `make tables-NAME`.

Each module `table_<name>.py` has rows, which are tasks for `simulate`, and puts what they give next to what the paper
says. A row that was computed is written to `docs/reference/tables/<name>.json` at once and is not computed again,
unless it is asked for with `--again`; so a table of many hours goes on where it was interrupted. `<name>.inc` next to
it is what the documentation includes.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import structlog

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration")]

from records import RECORDS, Found, Row, environment, read_records, write_record  # noqa: E402 - the path is above

EX_USAGE = 64


class Table(Protocol):
    """A module `table_<name>.py`."""

    def rows(self) -> Sequence[Row]:
        """All tasks of the table."""

    def compute(self, row: Row) -> Found:
        """Run a row's task."""

    def markdown(self, found: Mapping[str, Found]) -> str:
        """The table, as far as its rows are recorded."""


def names() -> list[str]:
    """The names of all tables."""
    return sorted(path.stem.removeprefix("table_").replace("_", "-") for path in HERE.glob("table_*.py"))


def table(name: str) -> Table:
    """The module of a table."""
    module: Table = importlib.import_module(f"table_{name.replace('-', '_')}")  # type: ignore[assignment]
    return module


def log_errors_only() -> None:
    """What a process of the pool starts with: the progress of rows is shown instead of their logs."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))


def compute(name: str, row: Row) -> Found:
    """Run a row in this process."""
    started = time.monotonic()
    found = table(name).compute(row)
    return Found(found.figures, found.digest, round(time.monotonic() - started), environment())


def write_page(name: str) -> str:
    """Write the table as the documentation includes it, and return it."""
    text = table(name).markdown(read_records(name))
    (RECORDS / f"{name}.inc").write_text(text, encoding="utf-8")
    return text


def main() -> int:
    """Compute what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--rows", default="*", help="only rows whose names match, such as '2nn-iid-*'")
    parser.add_argument("--jobs", type=int, default=1, help="rows that are computed at once, each on one thread")
    parser.add_argument("--again", action="store_true", help="also rows that are recorded")
    given = parser.parse_args()
    recorded = read_records(given.name)
    chosen = [row for row in table(given.name).rows() if fnmatch(row.name, given.rows)]
    missing = [row for row in chosen if given.again or row.name not in recorded]
    if not chosen:
        sys.stderr.write(f"no row of {given.name} matches {given.rows!r}\n")
        return EX_USAGE
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn"), log_errors_only) as pool:
        running = {pool.submit(compute, given.name, row): row for row in missing}
        for count, done in enumerate(as_completed(running), 1):
            row, found = running[done], done.result()
            write_record(given.name, row, found)
            write_page(given.name)
            sys.stderr.write(f"  {count} of {len(missing)}: {row.name} {found.figures}, {found.seconds} s\n")
    sys.stdout.write(write_page(given.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
