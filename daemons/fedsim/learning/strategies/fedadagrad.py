"""FedAdagrad."""

from __future__ import annotations

from fedsim.learning.adaptive import AdaptiveStep
from fedsim.learning.strategies import Block
from fedsim.plugins import gettext_noop


class FedAdagrad(AdaptiveStep):
    """FedAvg with Adagrad on the server (Reddi et al. 2021, algorithm 2)."""

    title = gettext_noop("FedAdagrad – mean with Adagrad on the server")

    def second_moment(self, second: Block, change: Block) -> Block:
        """V ← v + Δ²."""
        return second + change**2
