"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from typing import Any

from fedsim.learning.order_statistics import middle_mean
from fedsim.learning.robust import RobustRule, Rows
from fedsim.learning.strategies import Block
from fedsim.plugins import gettext_noop


class TrimmedMean(RobustRule):
    """The mean of each coordinate without its f largest and f smallest values (Yin et al. 2018, alg. 1; β = f/n)."""

    title = gettext_noop("Trimmed mean – of each coordinate, without both ends")

    def combine_rows(self, rows: Rows, received: Block, choice: Any) -> Block:  # noqa: ARG002
        """Cut f values at each end."""
        return middle_mean(rows, self.options.attackers)
