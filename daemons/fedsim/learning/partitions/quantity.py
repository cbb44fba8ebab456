"""The partition in which clients hold different numbers of examples."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition, Partitioner
from fedsim.learning.randomness import generator
from fedsim.plugins import PluginOptions, gettext_noop


class Quantity(Partitioner):
    """Shuffled examples in parts of unequal size; every example is dealt, and each client gets the least size first.

    `dirichlet`: the shares of the rest are drawn from Dirichlet(alpha) (quantity skew of Li et al. 2022, section 4.3).
    `power_law`: the client of rank r has a share proportional to r^-alpha, and the ranks are drawn at random.
    """

    title = gettext_noop("quantity – alike, but of unequal size")
    from_counts = "sizes"

    class Options(PluginOptions):
        """How unequal."""

        sizes: Literal["dirichlet", "power_law"] = Field(
            "dirichlet",
            title=gettext_noop("Distribution of sizes"),
            description=gettext_noop("Shares from a Dirichlet distribution, or by a power law of the clients' ranks."),
        )
        alpha: Annotated[float, Field(ge=0.001, le=1000)] = Field(
            0.5,
            title=gettext_noop("Alpha"),
            description=gettext_noop("dirichlet: small is uneven; power_law: the exponent, large is uneven."),
        )

    options: Options

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:
        """The order and the shares come from different streams, so that another alpha keeps the order."""
        rest = len(labels) - num_clients * min_size
        if rest < 0:
            raise BadInput(f"num_clients: {num_clients} clients cannot hold {min_size} of {len(labels)} examples each")
        order = generator(seed, "partition quantity").permutation(len(labels))
        rng = generator(seed, "partition quantity sizes")
        if self.options.sizes == "dirichlet":
            shares = rng.gamma(self.options.alpha, size=num_clients)
        else:
            shares = rng.permutation(np.arange(1, num_clients + 1)) ** -self.options.alpha
        if not shares.sum() > 0:  # with a tiny alpha all draws may underflow to zero: one client has everything
            shares[int(rng.integers(num_clients))] = 1.0
        ends = np.floor(np.cumsum(shares) / shares.sum() * rest).astype(np.int64)
        ends[-1] = rest
        offsets = np.concatenate([[0], ends + min_size * np.arange(1, num_clients + 1)]).astype(np.int64)
        return Partition(order, offsets)
