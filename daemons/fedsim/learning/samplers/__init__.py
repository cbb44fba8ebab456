"""Samplers: which clients train in a round. One class in one file each."""

from __future__ import annotations

from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings


class Sampler(Plugin):
    """The base of all samplers."""

    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:
        """Draw the round's cohort: `cohort_size` different clients of `num_clients`, ascending.

        A pure function of its arguments; draw from `fedsim.learning.randomness.generator(seed, "cohort", ...)`.
        """
        raise NotImplementedError


def make_sampler(settings: TaskSettings) -> Sampler:
    """The sampler that the settings name; raises `BadInput` if it cannot be made."""
    sampler: Sampler = settings.plugin("sampler")
    return sampler
