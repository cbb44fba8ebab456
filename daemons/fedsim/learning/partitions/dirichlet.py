"""The partition in which the shares of each label are drawn from a Dirichlet distribution."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition, Partitioner, partition_of_owners
from fedsim.learning.randomness import generator
from fedsim.plugins import PluginOptions, gettext_noop

ATTEMPTS = 20


class Dirichlet(Partitioner):
    """Each class is dealt in shares drawn from Dirichlet(alpha), until each client holds enough.

    Yurochkin et al. 2019 ("Bayesian nonparametric federated learning of neural networks", section 4); alpha is the
    concentration of Hsu et al. 2019. Sizes and class mixtures both differ among the clients; every example is dealt.

    `balanced`: all clients have the same size, and each draws its mixture of classes from Dirichlet(alpha · prior)
    (Hsu et al. 2019, "Measuring the effects of non-identical data distribution", section 3.1); a class that is used up
    is left out from then on. What does not fill a client belongs to none.
    """

    title = gettext_noop("dirichlet – label shares drawn with alpha")
    from_counts = "labels"

    class Options(PluginOptions):
        """The concentration."""

        alpha: Annotated[float, Field(ge=0.001, le=1000)] = Field(
            0.5,
            title=gettext_noop("Alpha"),
            description=gettext_noop("Concentration: small is uneven, large is even."),
        )
        balanced: bool = Field(
            False,
            title=gettext_noop("Balanced"),
            description=gettext_noop("All clients hold the same number of examples, of different mixtures of labels."),
        )

    options: Options

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:
        """Draw until the smallest client holds `min_size` examples, at most `ATTEMPTS` times."""
        if self.options.balanced:
            return self._divide_evenly(labels, num_clients, seed)
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
                return partition_of_owners(owner, num_clients)
        raise BadInput(
            f"min_partition_size: in {ATTEMPTS} draws with alpha {alpha} the smallest of {num_clients} "
            f"clients never held more than {best} of {len(labels)} training examples, {min_size} are asked for; "
            "choose a larger alpha, fewer clients or a smaller min_partition_size"
        )

    def _divide_evenly(self, labels: IntArray, num_clients: int, seed: int) -> Partition:
        rng = generator(seed, "partition dirichlet balanced")
        classes, counts = np.unique(labels, return_counts=True)
        decks = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
        prior, left, size = counts / len(labels), counts.copy(), len(labels) // num_clients
        owner = np.full(len(labels), num_clients, np.int64)
        for client in range(num_clients):
            # Gamma draws, normalised, are Dirichlet draws.
            mixture = rng.gamma(self.options.alpha * prior)
            for label, taken in enumerate(_take(rng, mixture, left, size)):
                start = counts[label] - left[label]
                owner[decks[label][start : start + taken]] = client
                left[label] -= taken
        return partition_of_owners(owner, num_clients)


def _take(rng: np.random.Generator, mixture: NDArray[np.float64], left: IntArray, size: int) -> IntArray:
    """How many of each class make up `size` examples, drawn by the mixture from what is left; int64 [classes]."""
    taken = np.zeros(len(left), np.int64)
    while (wanted := size - int(taken.sum())) > 0:
        weights = np.where(taken < left, mixture, 0.0)
        if not weights.sum() > 0:  # of what the mixture asks for nothing is left
            weights = np.where(taken < left, 1.0, 0.0)
        taken = np.minimum(taken + rng.multinomial(wanted, weights / weights.sum()), left)
    return taken
