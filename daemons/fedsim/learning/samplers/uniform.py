"""The sampler to which all clients are alike."""

from __future__ import annotations

from fedsim.learning.randomness import generator
from fedsim.learning.samplers import Sampler
from fedsim.plugins import gettext_noop


class Uniform(Sampler):
    """Each round draws its clients without replacement, all with the same probability (McMahan et al. 2017)."""

    title = gettext_noop("uniform – all clients with the same probability")
    draws_singly = True

    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:
        """The cost is proportional to the cohort, not to the population (Floyd's method inside numpy)."""
        drawn = generator(seed, "cohort", round_number).choice(num_clients, cohort_size, replace=False, shuffle=False)
        return tuple(sorted(drawn.tolist()))
