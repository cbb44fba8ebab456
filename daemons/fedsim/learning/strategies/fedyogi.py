"""FedYogi."""

from __future__ import annotations

import numpy as np

from fedsim.learning.adaptive import DecayingStep
from fedsim.learning.strategies import Block
from fedsim.plugins import gettext_noop


class FedYogi(DecayingStep):
    """FedAvg with Yogi on the server (Reddi et al. 2021, algorithm 2)."""

    title = gettext_noop("FedYogi – mean with Yogi on the server")

    def second_moment(self, second: Block, change: Block) -> Block:
        """V ← v - (1 - β2)·Δ²·sign(v - Δ²)."""
        square = change**2
        return second - (1 - self.options.beta2) * square * np.sign(second - square)
