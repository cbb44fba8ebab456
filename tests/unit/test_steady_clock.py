"""Clocks that jump, and two hosts with one name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedsim.durations import DAY_SECONDS
from fedsim.runtime.writer import Writer
from fedsim.server.steady_clock import SteadyClock


def test_a_clock_that_starts_a_year_ahead_is_not_believed_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"now": 1e9, "running": 0.0}
    monkeypatch.setattr(time, "time", lambda: times["now"])
    monkeypatch.setattr(time, "monotonic", lambda: times["running"])
    path = tmp_path / "clock.json"
    with Writer() as writer:

        def now(clock: SteadyClock) -> float | None:
            believed = clock.now()
            writer.drain()
            return believed

        assert now(SteadyClock(path, writer)) == 1e9, "there is nothing to compare it with"
        times["now"] += 3600
        assert now(SteadyClock(path, writer)) == 1e9 + 3600
        times["now"] += 365 * DAY_SECONDS
        clock = SteadyClock(path, writer)
        assert now(clock) is None
        times["running"] += DAY_SECONDS / 2
        assert now(clock) is None
        assert now(SteadyClock(path, writer)) is None, "a restart does not end the doubt"
        times["now"] -= 365 * DAY_SECONDS
        assert now(clock) == times["now"], "the network has corrected it"
        times["now"] += 30 * DAY_SECONDS
        assert now(clock) is None
        times["running"] += DAY_SECONDS
        assert now(clock) == times["now"], "the server was off for a month"
        path.write_bytes(b"damaged")
        assert now(clock) == times["now"]
