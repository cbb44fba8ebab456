"""The sampler that prefers clients with a large loss."""

from __future__ import annotations

from math import inf

import numpy as np
from pydantic import Field

from fedsim.learning.randomness import generator
from fedsim.learning.samplers import Known, Sampler
from fedsim.plugins import PluginOptions, gettext_noop


class PowerOfChoice(Sampler):
    """Draws d candidates by their share of the examples, and takes those with the largest last reported losses.

    Cho et al. 2022, "Towards understanding biased client selection in federated learning", section 3 and variant
    π_rpow-d: the loss is that of the client's last training, ∞ before its first one, so that no client is asked for it.
    Where nodes send one update for a chunk of clients, the loss is the chunk's.
    """

    title = gettext_noop("power_of_choice – of d candidates those with the largest loss")
    needs_sizes = True
    needs_losses = True

    class Options(PluginOptions):
        """The candidates."""

        d: int = Field(
            0,
            ge=0,
            le=1_000_000,
            title="d",
            description=gettext_noop("Candidates of a round, at least its clients; 0: twice as many as its clients."),
        )

    options: Options

    def problem(self, num_clients: int, cohort_size: int) -> str:
        """There are as many candidates as clients of a round, and no more than clients."""
        if self.options.d and not cohort_size <= self.options.d <= num_clients:
            return f"d is {self.options.d}, and a round has {cohort_size} of {num_clients} clients: choose one between"
        return ""

    def draw_known(
        self, seed: int, round_number: int, num_clients: int, cohort_size: int, known: Known
    ) -> tuple[int, ...]:
        """Of equal losses those that come first in a random order of the candidates."""
        rng = generator(seed, "cohort", round_number)
        d = self.options.d or min(2 * cohort_size, num_clients)
        p = np.asarray(known.sizes, np.float64) / sum(known.sizes)
        candidates = rng.permutation(rng.choice(num_clients, d, replace=False, p=p)).tolist()

        def loss(client: int) -> float:
            last = known.losses[client] if known.losses else None
            return inf if last is None else last

        return tuple(sorted(sorted(candidates, key=loss, reverse=True)[:cohort_size]))
