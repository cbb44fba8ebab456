"""Checks of samplers."""

from __future__ import annotations

from itertools import pairwise

from fedsim import plugins
from fedsim.learning.samplers import Known, Sampler
from fedsim.testing.conformance.candidate import Candidate, require, require_reproducible_task

CASES = ((1, 1), (10, 1), (10, 10), (1000, 100))
"""(num_clients, cohort_size)."""
ROUNDS = range(1, 6)


def _served(sampler: Sampler) -> list[tuple[int, int]]:
    """The cases that the sampler does not refuse."""
    return [case for case in CASES if not sampler.problem(*case)]


def _draw(sampler: Sampler, seed: int, number: int, num_clients: int, size: int) -> tuple[int, ...]:
    """A cohort of clients of different sizes, of which every third has not reported a loss."""
    losses = tuple(None if client % 3 == 0 else (client * 7 % 11) / 10 for client in range(num_clients))
    known = Known([10 + client % 5 for client in range(num_clients)], losses if number > 1 else ())
    return sampler.draw_known(seed, number, num_clients, size, known)


def draws_a_valid_cohort(candidate: Candidate) -> None:
    """A cohort has as many clients as `num_drawn` says: different ones, ascending, as Python integers."""
    sampler: Sampler = candidate.make()
    served = _served(sampler)
    require(served, f"it can draw none of the cohorts {', '.join(f'{size} of {count}' for count, size in CASES)}")
    for num_clients, size in served:
        wanted = sampler.num_drawn(num_clients, size)
        require(size <= wanted <= num_clients, f"it draws {wanted} clients where {size} of {num_clients} are needed")
        for number in ROUNDS:
            cohort = _draw(sampler, 0, number, num_clients, size)
            what = f"the cohort of round {number}, {wanted} of {num_clients} clients,"
            require(len(cohort) == wanted, f"{what} has {len(cohort)} clients")
            require(all(type(client) is int for client in cohort), f"{what} is not of Python's own integers")
            require(all(one < other for one, other in pairwise(cohort)), f"{what} is not ascending or has one twice")
            require(cohort[0] >= 0 and cohort[-1] < num_clients, f"{what} has clients outside of the population")


def draws_as_a_pure_function(candidate: Candidate) -> None:
    """A round's cohort depends only on the arguments: not on the instance, nor on what was drawn before."""
    sampler: Sampler = candidate.make()
    for num_clients, size in _served(sampler):
        forward = [_draw(sampler, 7, number, num_clients, size) for number in ROUNDS]
        backward = [_draw(candidate.make(), 7, number, num_clients, size) for number in reversed(ROUNDS)]
        require(forward == backward[::-1], "the same round gave two different cohorts")


def rounds_differ(candidate: Candidate) -> None:
    """Other rounds and other seeds draw other clients."""
    sampler: Sampler = candidate.make()
    rounds = {tuple(_draw(sampler, 7, number, 1000, 100)) for number in ROUNDS}
    seeds = {tuple(_draw(sampler, seed, 1, 1000, 100)) for seed in range(5)}
    require(len(rounds) > 1, "all rounds have one cohort")
    require(len(seeds) > 1, "all seeds have one cohort")


def tasks_train_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    sampler: Sampler = candidate.make()
    size = next(size for size in (6, 3, 1) if not sampler.problem(12, size))
    require_reproducible_task(candidate, plugins.SAMPLERS, "sampler", num_clients=12, fraction_train=size / 12)


CHECKS = (draws_a_valid_cohort, draws_as_a_pure_function, rounds_differ, tasks_train_reproducibly)
