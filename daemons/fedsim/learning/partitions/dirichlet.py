"""The partition in which the shares of each label are drawn from a Dirichlet distribution."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition, Partitioner
from fedsim.learning.randomness import generator
from fedsim.plugins import PluginOptions, gettext_noop

ATTEMPTS = 20


class Dirichlet(Partitioner):
    """Each class is dealt in shares drawn from Dirichlet(alpha), until each client holds enough.

    Yurochkin et al. 2019 ("Bayesian nonparametric federated learning of neural networks", section 4); alpha is the
    concentration of Hsu et al. 2019. Sizes and class mixtures both differ among the clients; every example is dealt.
    """

    title = gettext_noop("dirichlet – label shares drawn with alpha")

    class Options(PluginOptions):
        """The concentration."""

        alpha: Annotated[float, Field(ge=0.001, le=1000)] = Field(
            0.5,
            title=gettext_noop("Alpha"),
            description=gettext_noop("Concentration: small is uneven, large is even."),
        )

    options: Options

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:
        """Draw until the smallest client holds `min_size` examples, at most `ATTEMPTS` times."""
        alpha = self.options.alpha
        best = 0
        for attempt in range(ATTEMPTS):
            rng = generator(seed, "partition dirichlet", attempt)
            owner = np.empty(len(labels), np.int64)
            for label in np.unique(labels):
                members = rng.permutation(np.flatnonzero(labels == label))
                # Gamma draws, normalised, are Dirichlet draws; with a tiny alpha all of them may underflow to zero.
                shares = rng.gamma(alpha, size=num_clients)
                ends = np.cumsum(shares)
                if not ends[-1] > 0:
                    ends = np.cumsum(np.eye(1, num_clients, int(rng.integers(num_clients))).ravel())
                ends = np.floor(ends / ends[-1] * len(members)).astype(np.int64)
                ends[-1] = len(members)
                owner[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
            sizes = np.bincount(owner, minlength=num_clients)
            best = max(best, int(sizes.min()))
            if sizes.min() >= min_size:
                offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
                return Partition(np.argsort(owner, kind="stable"), offsets)
        raise BadInput(
            f"min_partition_size: in {ATTEMPTS} draws with alpha {alpha} the smallest of {num_clients} "
            f"clients never held more than {best} of {len(labels)} training examples, {min_size} are asked for; "
            "choose a larger alpha, fewer clients or a smaller min_partition_size"
        )
