"""FedAdam."""

from __future__ import annotations

from fedsim.learning.adaptive import DecayingStep
from fedsim.learning.strategies import Block
from fedsim.plugins import gettext_noop


class FedAdam(DecayingStep):
    """FedAvg with Adam on the server (Reddi et al. 2021, algorithm 2)."""

    title = gettext_noop("FedAdam – mean with Adam on the server")

    def second_moment(self, second: Block, change: Block) -> Block:
        """V ← β2·v + (1 - β2)·Δ²."""
        return self.options.beta2 * second + (1 - self.options.beta2) * change**2
