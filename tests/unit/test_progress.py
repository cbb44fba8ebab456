"""The progress of a task on a terminal, and the estimate of the time that is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from test_cli_follow import record

from fedsim.cli.commands.watch import _Bar
from fedsim.cli.follow import Snapshot
from fedsim.cli.output import Output
from fedsim.server.projection import remaining_seconds


def test_the_progress_of_a_long_task_fits_80_columns() -> None:
    out = Output(as_json=False)
    file = io.StringIO()
    out.out = Console(file=file, width=80, force_terminal=True, color_system=None)
    bar = _Bar(out)
    metrics = {"balanced_accuracy": 0.97531, "loss": 0.123456}
    info = {"balanced_accuracy": {"format": "share"}, "loss": {"format": "number"}}
    fields = {"metrics": metrics, "metric_info": info, "headline": "balanced_accuracy", "eta_seconds": 86_000.0}
    snapshot = Snapshot(record(round_number=10_000, settings={"num_rounds": 100_000}, **fields) | {"number": 12345})
    with bar:
        bar.show(snapshot)
    with out.out.capture() as printed:
        out.out.print(bar._live.get_renderable())
    lines = printed.get().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for part in ("Task 12345 running", "round 9999 of 100000", "balanced accuracy 97.53%", "about 23 h 53 min left"):
        assert part in text


@pytest.mark.parametrize(
    "lengths", [[30, 60, 2, 2], [1, 40, 3, 5], [5, 20, 4, 4, 9, 4, 4, 9], [0.1, 1, 1, 1], [20, 30, 10, 10]]
)
def test_the_time_left_is_at_most_twice_or_half_of_the_truth_after_three_rounds(lengths: list[float]) -> None:
    known = dict(enumerate(lengths))
    usual = sum(lengths[2:]) / len(lengths[2:])
    estimate = remaining_seconds(known, 100)
    assert estimate is not None
    assert 0.5 <= estimate / (usual * 100) <= 2
    assert remaining_seconds({}, 5) is None
    assert remaining_seconds({0: 4.0}, 5) == 20
