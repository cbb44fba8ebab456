"""The benchmarks' table: ratios, bars scaled by the calibration, what is held; and the names that they are run by."""

from __future__ import annotations

import io
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from harness.measure import REFERENCE, Options, interleaved
from harness.results import Bar, Result, Row, at_most, compare, ratio_at_least, ratio_at_most, show, table
from rich.console import Console

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "tests" / "bench" / "bench.py"
SCALE = dict.fromkeys(REFERENCE, 1.0)
SLOW_DISK = SCALE | {"writes": 2.0}


def result(*rows: Row, scale: dict[str, float] = SCALE, failure: str = "") -> Result:
    return Result("example", False, "a machine", dict(REFERENCE), scale, 1.0, list(rows), failure)


def printed(*results: Result) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(table(results))
    return out.getvalue()


@pytest.mark.parametrize(
    ("bar", "value", "reference", "held"),
    [
        (ratio_at_least(0.85), 90.0, 100.0, True),
        (ratio_at_least(0.85), 80.0, 100.0, False),
        (ratio_at_most(1.5), 1.5, 1.0, True),
        (ratio_at_most(1.5), 1.6, 1.0, False),
        (at_most(16), 15.0, None, True),
        (at_most(16), 17.0, None, False),
        (ratio_at_least(0.85), 90.0, None, None),  # nothing to compare with
        (None, 90.0, 100.0, None),
    ],
)
def test_a_row_holds_its_bar_or_not(bar: Bar | None, value: float, reference: float | None, held: bool | None) -> None:
    assert Row("work", value, "", "floor", reference, bar=bar).held(SCALE) is held


def test_a_bar_in_seconds_is_scaled_by_the_calibration_that_it_names() -> None:
    row = Row("a round", 0.020, "s", bar=at_most(0.015, "writes"))
    assert row.held(SCALE) is False
    assert row.held(SLOW_DISK) is True
    assert Row("a round", 0.020, "s", bar=at_most(0.015, "sgemm")).held(SLOW_DISK) is False


def test_the_ratio_is_the_median_of_pairs_that_were_measured_in_turn() -> None:
    ours, floor = [1.0, 20.0, 3.0], [1.0, 10.0, 1.0]  # the machine was slow during the second pair
    row = compare("work", ours, floor, against="floor", unit="s")
    assert (row.value, row.reference) == (statistics.median(ours), statistics.median(floor))
    assert row.ratio == 2.0


def test_ways_are_measured_in_turn_and_the_warm_up_is_left_out() -> None:
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleaved({"ours": lambda: way("ours"), "floor": lambda: way("floor")}, 2)
    assert order == ["ours", "floor"] * 3
    assert found == {"ours": [3.0, 5.0], "floor": [4.0, 6.0]}


def test_at_least_five_repetitions_unless_quick() -> None:
    assert Options().repeats >= 5 > Options(quick=True).repeats


def test_the_table_says_what_is_held_and_what_failed() -> None:
    held = Row("moving", 9e8, "B/s", "bare socket", 1e9, bar=ratio_at_least(0.85), note="TLS")
    missed = Row("a round", 0.020, "s", bar=at_most(0.015, "writes"))
    text = printed(result(held, missed, failure="its process died"))
    lines = [re.sub(r"\s+", " ", line) for line in text.splitlines()]
    assert any("moving (TLS) │ 900 MB/s │ bare socket │ 1 GB/s │ 0.90 │ ratio ≥ 0.85 │ held" in line for line in lines)
    assert any("a round │ 20 ms │ │ │ │ ≤ 15 ms, here 15 ms │ not held" in line for line in lines)
    assert any("its process died" in line and "failed" in line for line in lines)
    assert "a machine" in text


def test_a_result_is_written_as_json_and_read_again(tmp_path: Path) -> None:
    before = result(
        Row("moving", 9e8, "B/s", "bare", 1e9, bar=ratio_at_least(0.85)),
        Row("a round", 0.020, "s", bar=at_most(0.015, "writes")),
        Row("information", 3.0),
        scale=SLOW_DISK,
    )
    path = before.write(tmp_path)
    assert path == tmp_path / "example.json"
    assert Result.read(path) == before
    rows = before.as_json()["rows"]
    assert [row["held"] for row in rows] == [True, True, None]
    assert [row["limit_here"] for row in rows] == [0.85, 0.03, None]
    assert rows[0]["ratio"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0785, "s", "78.5 ms"),
        (12.5, "s", "12.5 s"),
        (1.05e9, "B/s", "1.05 GB/s"),
        (800.0, "B", "800 B"),
        (0.0, "B", "0 B"),
        (12345.0, "", "12345"),
    ],
)
def test_values_have_three_digits_and_a_unit(value: float, unit: str, text: str) -> None:
    assert show(value, unit) == text


def test_an_unknown_name_lists_the_benchmarks_and_the_peers() -> None:
    done = subprocess.run([sys.executable, str(BENCH), "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 64
    listed = set(re.findall(r"^  ([a-z0-9-]+) ", done.stderr, re.MULTILINE))
    files = {*BENCH.parent.glob("bench_*.py"), *(BENCH.parent / "peers").glob("peer_*.py")}
    assert listed == {path.stem.partition("_")[2].replace("_", "-") for path in files}
    assert {"transfer", "round", "flower"} <= listed


def test_make_runs_all_benchmarks_one_of_them_or_the_peers() -> None:
    def commands(*arguments: str) -> str:
        # Without the variables of the `make` that runs the tests.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        made = subprocess.run(
            ["make", "-n", *arguments],  # noqa: S607 - make of the PATH
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return " ".join(made.stdout.split())

    assert commands("bench").endswith("tests/bench/bench.py")
    assert commands("bench-transfer", "QUICK=1").endswith("tests/bench/bench.py --quick transfer")
    assert commands("bench-peers").endswith("tests/bench/bench.py --peers")
