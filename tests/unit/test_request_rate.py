"""Requests are limited for each user and each address, in bounded memory."""

from __future__ import annotations

from fedsim.web.request_rate import MAX_KEYS, RequestRate


def test_a_minutes_requests_are_allowed_at_once_then_the_rate() -> None:
    rate = RequestRate(60)
    assert [rate.take("a", 100.0) for _ in range(61)] == [0] * 60 + [1]
    assert rate.take("b", 100.0) == 0
    assert [rate.take("a", 100.5), rate.take("a", 101.0), rate.take("a", 101.0)] == [1, 0, 1]
    assert [rate.take("a", 200.0) for _ in range(61)] == [0] * 60 + [1]


def test_a_clock_that_was_set_back_locks_no_one_out() -> None:
    rate = RequestRate(60)
    rate.take("a", 1e9)
    assert rate.take("a", 0.0) == 0
    for _ in range(58):
        rate.take("a", 0.0)
    assert rate.take("a", 0.0) == 1
    assert rate.take("a", 1.0) == 0


def test_strangers_cannot_fill_the_memory() -> None:
    rate = RequestRate(1)
    for number in range(MAX_KEYS + 100):
        assert rate.take(f"address:{number}", 0.0) == 0
    assert len(rate._buckets) == MAX_KEYS
