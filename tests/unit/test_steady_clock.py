"""Clocks that jump, and two hosts with one name."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fedsim.errors import Refused
from fedsim.inbox.validation import check_instance
from fedsim.messages import EngineInfo, Hello
from fedsim.server.steady_clock import DAY_SECONDS, SteadyClock
from fedsim.spool.instance import instance_of


def test_a_clock_that_starts_a_year_ahead_is_not_believed_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"now": 1e9, "running": 0.0}
    monkeypatch.setattr(time, "time", lambda: times["now"])
    monkeypatch.setattr(time, "monotonic", lambda: times["running"])
    path = tmp_path / "clock.json"
    assert SteadyClock(path).now() == 1e9, "there is nothing to compare it with"
    times["now"] += 3600
    assert SteadyClock(path).now() == 1e9 + 3600
    times["now"] += 365 * DAY_SECONDS
    clock = SteadyClock(path)
    assert clock.now() is None
    times["running"] += DAY_SECONDS / 2
    assert clock.now() is None
    assert SteadyClock(path).now() is None, "a restart does not end the doubt"
    times["now"] -= 365 * DAY_SECONDS
    assert clock.now() == times["now"], "the network has corrected it"
    times["now"] += 30 * DAY_SECONDS
    assert clock.now() is None
    times["running"] += DAY_SECONDS
    assert clock.now() == times["now"], "the server was off for a month"
    path.write_bytes(b"damaged")
    assert clock.now() == times["now"]


def hello(path: Path, instance: str, host: str) -> Path:
    announced = Hello(
        node="node-a", version="1", sent_at=0, clients=1, engine=EngineInfo(), instance=instance, host=host
    )
    path.write_text(announced.model_dump_json())
    return path


def test_the_second_of_two_hosts_with_one_name_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    there, coming = tmp_path / "node-a.json", tmp_path / "coming"
    hello(coming, "b" * 32, "clone")
    check_instance(coming, there)
    hello(there, "a" * 32, "original")
    with pytest.raises(Refused, match="two hosts announce themselves as node-a: original 0 s ago, and now clone; stop"):
        check_instance(coming, there)
    check_instance(hello(tmp_path / "again", "a" * 32, "original"), there)
    gone = time.time() - 31
    os.utime(there, (gone, gone))
    check_instance(coming, there)
    there.write_bytes(b"damaged")
    check_instance(coming, there)


def test_a_spool_keeps_its_identity(tmp_path: Path) -> None:
    first = instance_of(tmp_path)
    assert instance_of(tmp_path) == first
    (tmp_path / "instance").write_bytes(b"damaged")
    assert instance_of(tmp_path) != first
