"""The coordinate-wise median."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.learning.examples import FloatArray
from fedsim.learning.order_statistics import middle_mean
from fedsim.learning.strategies import Block, Strategy, Uplink
from fedsim.plugins import gettext_noop


class Median(Strategy):
    """The coordinate-wise median of the clients' parameters (Yin et al. 2018, algorithm 1); all clients count alike."""

    title = gettext_noop("Median – of each coordinate, withstands outliers")
    uplink = Uplink.EACH_CLIENT

    def combine(self, updates: Sequence[FloatArray], weights: Sequence[float], received: Block, prepared: Any) -> Block:  # noqa: ARG002
        """The middle value, or the mean of the two middle values."""
        return middle_mean(updates, (len(updates) - 1) // 2)
