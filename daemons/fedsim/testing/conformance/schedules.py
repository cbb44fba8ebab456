"""Checks of schedules."""

from __future__ import annotations

from math import isfinite

from fedsim import plugins
from fedsim.learning.schedules import Schedule
from fedsim.testing.conformance.candidate import Candidate, require, require_reproducible_task

LENGTHS = (1, 2, 10, 1000)
"""Rounds of a task."""


def _factors(candidate: Candidate, num_rounds: int) -> list[float]:
    schedule: Schedule = candidate.make()
    return [schedule.factor(number, num_rounds) for number in range(1, num_rounds + 1)]


def factors_are_positive(candidate: Candidate) -> None:
    """Each round's learning rate is multiplied by a finite number above 0."""
    for length in LENGTHS:
        for number, factor in enumerate(_factors(candidate, length), start=1):
            what = f"the factor of round {number} of {length}"
            require(isinstance(factor, int | float), f"{what} is a {type(factor).__name__}")
            require(isfinite(factor) and factor > 0, f"{what} is {factor}")


def schedules_as_a_pure_function(candidate: Candidate) -> None:
    """A round's factor depends only on the arguments: not on the instance, nor on what was asked before."""
    for length in LENGTHS:
        backward = [candidate.make().factor(number, length) for number in range(length, 0, -1)]
        require(_factors(candidate, length) == backward[::-1], "the same round had two different factors")


def depends_on_the_length_as_declared(candidate: Candidate) -> None:
    """Unless `depends_on_num_rounds`, the first rounds of a longer task have the factors of a shorter one."""
    if not candidate.make().depends_on_num_rounds:
        shorter, longer = _factors(candidate, 10), _factors(candidate, 1000)
        require(longer[:10] == shorter, "it depends on num_rounds and does not declare `depends_on_num_rounds`")


def schedule_trains_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(candidate, plugins.SCHEDULES, "schedule")


CHECKS = (
    factors_are_positive,
    schedules_as_a_pure_function,
    depends_on_the_length_as_declared,
    schedule_trains_reproducibly,
)
