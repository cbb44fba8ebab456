from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.wire.protocol.limits import ConnectionLimits, Pace

RATE, PATIENCE = 1000, 10.0


def pace(rate: int = RATE) -> Pace:
    rules = ConnectionLimits(
        max_header_bytes=4096,
        quiet_seconds=PATIENCE,
        idle_seconds=900,
        stall_seconds=900,
        min_bytes_per_second=rate,
    )
    return Pace(rules, now=0.0)


def is_late(measured: Pace, now: float) -> bool:
    return measured.deadline is not None and now >= measured.deadline


def test_silence_while_a_body_is_due_ends_when_the_patience_does() -> None:
    measured = pace()
    assert measured.deadline is None
    measured.note(5.0, body_bytes=0, due=True)
    assert measured.deadline == pytest.approx(15.0)
    for now in (6.0, 9.0, 14.0):  # frames that bring no body
        measured.note(now, body_bytes=0, due=True)
        assert measured.deadline == pytest.approx(15.0)


def test_opening_and_closing_bodies_forgets_no_silence() -> None:
    measured = pace()
    for turn in range(20):
        measured.note(turn * 1.0, body_bytes=0, due=True)
        if is_late(measured, turn * 1.0):
            break
        measured.note(turn + 0.9, body_bytes=0, due=False)
    assert 10 <= turn <= 13


@given(st.lists(st.floats(0.01, 9.0), max_size=50), st.integers(1, 10))
def test_a_sender_at_the_minimum_rate_is_never_too_slow_however_many_bodies_wait(
    pauses: list[float], bodies: int
) -> None:
    measured, now = pace(), 0.0
    for number, pause in enumerate(pauses):
        measured.note(now, body_bytes=0, due=True)
        now += pause
        assert not is_late(measured, now)
        # The smallest body gets it all; that others are open changes nothing.
        measured.note(now, body_bytes=int(pause * RATE) + 1, due=number % bodies != bodies - 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_sender_of_next_to_nothing_is_disconnected_whatever_the_rhythm(seed: int) -> None:
    rhythm = random.Random(seed)
    measured, now = pace(), 0.0
    measured.note(now, body_bytes=1_000_000, due=True)  # a burst buys nothing for later
    while not is_late(measured, now):
        pause = rhythm.uniform(0.1, 5.0)
        now += pause
        measured.note(now, body_bytes=int(pause * RATE / 3), due=True)
        assert now < 2 * PATIENCE + 5.0, "it goes on for ever"


def test_without_a_minimum_rate_no_sender_is_too_slow() -> None:
    measured = pace(rate=0)
    measured.note(0.0, body_bytes=0, due=True)
    assert measured.deadline is None
