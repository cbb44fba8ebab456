"""Checks of samplers."""

from __future__ import annotations

from itertools import pairwise

from fedsim import plugins
from fedsim.learning.samplers import Sampler
from fedsim.testing.conformance.candidate import Candidate, require, require_reproducible_task

CASES = ((1, 1), (10, 1), (10, 10), (1000, 100))
"""(num_clients, cohort_size)."""
ROUNDS = range(1, 6)


def draws_a_valid_cohort(candidate: Candidate) -> None:
    """A cohort has the size asked for: different clients of the population, ascending, as Python integers."""
    sampler: Sampler = candidate.make()
    for num_clients, size in CASES:
        for number in ROUNDS:
            cohort = sampler.draw(0, number, num_clients, size)
            what = f"the cohort of round {number}, {size} of {num_clients} clients,"
            require(len(cohort) == size, f"{what} has {len(cohort)} clients")
            require(all(type(client) is int for client in cohort), f"{what} is not of Python's own integers")
            require(all(one < other for one, other in pairwise(cohort)), f"{what} is not ascending or has one twice")
            require(cohort[0] >= 0 and cohort[-1] < num_clients, f"{what} has clients outside of the population")


def draws_as_a_pure_function(candidate: Candidate) -> None:
    """A round's cohort depends only on the arguments: not on the instance, nor on what was drawn before."""
    sampler: Sampler = candidate.make()
    forward = [sampler.draw(7, number, 1000, 100) for number in ROUNDS]
    backward = [candidate.make().draw(7, number, 1000, 100) for number in reversed(ROUNDS)]
    require(forward == backward[::-1], "the same round gave two different cohorts")


def rounds_differ(candidate: Candidate) -> None:
    """Other rounds and other seeds draw other clients."""
    sampler: Sampler = candidate.make()
    require(len({tuple(sampler.draw(7, number, 1000, 100)) for number in ROUNDS}) > 1, "all rounds have one cohort")
    require(len({tuple(sampler.draw(seed, 1, 1000, 100)) for seed in range(5)}) > 1, "all seeds have one cohort")


def tasks_train_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(candidate, plugins.SAMPLERS, "sampler", num_clients=12, fraction_train=0.5)


CHECKS = (draws_a_valid_cohort, draws_as_a_pure_function, rounds_differ, tasks_train_reproducibly)
