"""The partition in which clients differ by the noise in their features."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from pydantic import Field

from fedsim.learning.examples import FloatArray, IntArray
from fedsim.learning.partitions import Partition
from fedsim.learning.partitions.iid import Iid
from fedsim.learning.randomness import generator
from fedsim.plugins import PluginOptions, gettext_noop


class FeatureNoise(Iid):
    """Divided as by `iid`; client i of N then adds noise from Gau(σ · i / N) to its features, i from 1 on.

    Li et al. 2022, "Federated learning on non-IID data silos: an experimental study" (NIID-Bench), section 4.2:
    σ · i / N is the variance. The noise of an example is the same in each round. Tests have none, but for
    those of clients' own models: a client's held-out examples have noise of the same kind.
    """

    title = gettext_noop("feature_noise – alike, with noise that grows with the client's number")
    changes_features = True

    class Options(PluginOptions):
        """The noise."""

        sigma: float = Field(
            0.1,
            gt=0,
            le=1e6,
            title="σ",
            description=gettext_noop("Variance of the last client's noise, in units of scaled features."),
        )

    options: Options

    def divide(self, labels: IntArray, num_clients: int, min_size: int, seed: int) -> Partition:
        """The clients of `iid`."""
        even = super().divide(labels, num_clients, min_size, seed)
        return NoisyPartition(even.order, even.offsets, self.options.sigma, seed)


@dataclass(frozen=True)
class NoisyPartition(Partition):
    """Clients with noise of a variance up to `sigma`."""

    sigma: float = 0.0
    seed: int = 0

    def change(self, client: int, features: FloatArray) -> FloatArray:
        """Add the client's noise, in place."""
        return self._with_noise("partition feature_noise", client, features)

    def change_held_out(self, client: int, features: FloatArray) -> FloatArray:
        """Add other noise of the same variance, in place."""
        return self._with_noise("held-out feature_noise", client, features)

    def _with_noise(self, purpose: str, client: int, features: FloatArray) -> FloatArray:
        noise = generator(self.seed, purpose, client).standard_normal(features.shape, np.float32)
        features += np.float32(sqrt(self.sigma * (client + 1) / self.num_clients)) * noise
        return features
