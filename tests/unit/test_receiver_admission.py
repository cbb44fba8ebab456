"""What connections cost whose other side has not identified itself is bounded, and each network has its turn."""

from __future__ import annotations

import time

import pytest

from fedsim.receiver.admission import Admission
from fedsim.receiver.budget import TimeBudget


def burn(seconds: float) -> None:
    """Use this much processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class FakeStranger:
    """A connection that notes what is done with it; beginning it costs `cost` seconds."""

    def __init__(self, log: list[str], name: str, ip_address: str, cost: float = 0.0) -> None:
        self.ip_address = ip_address
        self._log, self._name, self._cost = log, name, cost

    def begin(self) -> None:
        self._log.append(f"begin {self._name}")
        burn(self._cost)

    def take_turn(self) -> None:
        self._log.append(f"turn {self._name}")

    def replace(self) -> None:
        self._log.append(f"replace {self._name}")


def admission(limit: int = 4) -> Admission:
    return Admission(lambda: limit, lambda: None)


def spend(admitted: Admission, seconds: float = 0.3) -> None:
    """Empty the budget."""
    with admitted.charged():
        burn(seconds)


def test_a_budget_is_overdrawn_once_and_fills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fedsim.receiver.budget.time.monotonic", lambda: now[0])
    budget = TimeBudget(0.1, 0.02)
    assert budget.wait_seconds() == 0
    with budget.charged():
        burn(0.05)
    debt = budget.wait_seconds()
    assert 0.3 <= debt < 3  # (0.05 - 0.02) / 0.1, and what the loop took too long
    now[0] += debt / 2
    assert budget.wait_seconds() == pytest.approx(debt / 2)
    now[0] += 1000
    with budget.charged():
        burn(0.03)
    assert budget.wait_seconds() > 0  # no more is saved up than the reserve


def test_what_is_done_within_the_budget_happens_at_once() -> None:
    log: list[str] = []
    admitted = admission()
    first, second = FakeStranger(log, "a", "192.0.2.1"), FakeStranger(log, "b", "192.0.2.1")
    for connection in (first, second):
        admitted.add(connection)
    assert admitted.handle(0) is False
    assert log == ["begin b", "begin a"]
    assert not admitted.must_wait(first)
    assert admitted.deadline is None


def test_networks_have_their_turn_one_after_the_other_and_the_newest_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    monkeypatch.setattr("fedsim.receiver.budget.time.monotonic", lambda: started)  # the budget does not fill meanwhile
    log: list[str] = []
    admitted = admission(limit=20)
    for number in range(9):
        admitted.add(FakeStranger(log, f"flood-{number}", "192.0.2.1", cost=0.06))
    admitted.add(FakeStranger(log, "peer", "198.51.100.1"))
    admitted.handle(0)
    assert log[:2] == ["begin flood-8", "begin peer"]
    assert len(log) < 7  # a fifth of a second was saved up
    assert admitted.deadline is not None


def test_one_that_was_begun_waits_while_the_budget_is_empty_and_a_peer_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = time.monotonic()
    monkeypatch.setattr("fedsim.receiver.budget.time.monotonic", lambda: started)
    log: list[str] = []
    admitted = admission()
    stranger, peer = FakeStranger(log, "stranger", "192.0.2.1"), FakeStranger(log, "peer", "192.0.2.2")
    for connection in (stranger, peer):
        admitted.add(connection)
    admitted.handle(0)
    admitted.discard(peer)
    spend(admitted)
    assert admitted.must_wait(stranger)
    assert not admitted.must_wait(peer)
    admitted.handle(0)
    assert "turn stranger" not in log
    assert admitted.deadline is not None


def test_turns_are_given_before_new_connections_are_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    monkeypatch.setattr("fedsim.receiver.budget.time.monotonic", lambda: started)
    log: list[str] = []
    admitted = admission(limit=20)
    begun = [FakeStranger(log, f"old-{number}", "192.0.2.1") for number in range(5)]
    for connection in begun:
        admitted.add(connection)
    admitted.handle(0)
    spend(admitted)
    for connection in begun:
        assert admitted.must_wait(connection)
    admitted.add(FakeStranger(log, "new", "192.0.2.1"))
    log.clear()
    later = started + 1000
    monkeypatch.setattr("fedsim.receiver.budget.time.monotonic", lambda: later)
    admitted.handle(0)
    assert [entry.split("-")[0] for entry in log] == ["turn old"] * 3 + ["begin new"] + ["turn old"] * 2


def test_a_handshake_that_does_not_come_makes_room_for_the_next_of_its_network() -> None:
    log: list[str] = []
    admitted = admission(limit=3)
    admitted.add(FakeStranger(log, "peer", "198.51.100.1"))
    for number in range(4):
        admitted.add(FakeStranger(log, f"flood-{number}", "192.0.2.1"))
        admitted.handle(0)
    assert [entry for entry in log if entry.startswith("replace")] == ["replace flood-0", "replace flood-1"]
    assert len(admitted) == 3


def test_what_waits_is_bounded_and_closed_at_the_end() -> None:
    log: list[str] = []
    admitted = admission(limit=1)
    for number in range(17):
        admitted.add(FakeStranger(log, str(number), "192.0.2.1"))
    assert log == ["replace 0"]
    admitted.close()
    assert len(log) == 17
