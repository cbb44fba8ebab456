"""The sampler that prefers clients with many examples."""

from __future__ import annotations

import numpy as np

from fedsim.learning.randomness import generator
from fedsim.learning.samplers import Known, Sampler
from fedsim.plugins import gettext_noop


class BySize(Sampler):
    """Each round draws its clients with probabilities p_k, their shares of all examples, without replacement.

    Li et al. 2020, "On the convergence of FedAvg on non-IID data", scheme I, which draws with replacement. It is meant
    for equal weights: `strategy_options.weighting=uniform`.
    """

    title = gettext_noop("by_size – clients with more examples more often")
    needs_sizes = True

    def draw_known(
        self, seed: int, round_number: int, num_clients: int, cohort_size: int, known: Known
    ) -> tuple[int, ...]:
        """One client after another, each by the shares of those that are left."""
        p = np.asarray(known.sizes, np.float64) / sum(known.sizes)
        drawn = generator(seed, "cohort", round_number).choice(num_clients, cohort_size, replace=False, p=p)
        return tuple(sorted(drawn.tolist()))
