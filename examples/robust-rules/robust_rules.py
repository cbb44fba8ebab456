"""Two rules that withstand clients which send anything: an example of a package with strategies for fedsim."""

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.strategies import Strategy, Uplink
from fedsim.plugins import PluginOptions


class TrimmedMean(Strategy):
    """The coordinate-wise mean without the largest and smallest values (Yin et al. 2018, algorithm 1)."""

    title = "My trimmed mean"
    uplink = Uplink.EACH_CLIENT  # the rule needs the update of each client

    class Options(PluginOptions):
        """How much is cut off."""

        share: Annotated[float, Field(ge=0, lt=0.5)] = Field(
            0.1, title="Trimmed share", description="Share of the clients cut off at each end."
        )

    def combine(self, updates, weights, received, prepared):
        ordered = np.sort(np.stack(updates).astype(np.float64), axis=0)
        cut = int(self.options.share * len(ordered))
        return ordered[cut : len(ordered) - cut].mean(axis=0)


class Krum(Strategy):
    """The update with the smallest sum of squared distances to its nearest ones (Blanchard et al. 2017, section 4)."""

    title = "My Krum"
    uplink = Uplink.EACH_CLIENT

    class Options(PluginOptions):
        """How many clients may send anything."""

        attackers: Annotated[int, Field(ge=0, le=1000)] = Field(
            1, title="Attackers", description="Most clients of a round that may send anything."
        )

    def prepare(self, weights, context):
        """One pass: the squared distances between all updates, summed over the blocks."""
        count, attackers = len(weights), self.options.attackers
        if count < 2 * attackers + 3:
            raise BadInput(
                f"krum with {attackers} attackers needs at least {2 * attackers + 3} updates in a round, here are "
                f"{count}: choose a larger cohort or a smaller strategy_options.attackers"
            )
        squared = yield self.squared_distances
        # The first column is each update's distance to itself.
        nearest = np.sort(squared, axis=1)[:, 1 : count - attackers - 1]
        return int(np.argmin(nearest.sum(axis=1)))

    @staticmethod
    def squared_distances(updates, received):
        """Float64 [n, n], of one block."""
        stacked = np.stack(updates).astype(np.float64)
        return np.array([np.square(stacked - one).sum(axis=1) for one in stacked])

    def combine(self, updates, weights, received, prepared):
        return updates[prepared].astype(np.float64)
