"""Krum."""

from __future__ import annotations

import numpy as np

from fedsim.learning.distances import squared_distances
from fedsim.learning.robust import RobustRule, Rows
from fedsim.learning.strategies import Block
from fedsim.learning.strategies.multi_krum import krum_scores
from fedsim.plugins import gettext_noop


class Krum(RobustRule):
    """The update with the smallest sum of squared distances to its n - f - 2 nearest ones (Blanchard et al. 2017)."""

    title = gettext_noop("Krum – the update nearest to others")
    needs_products = True

    def least_rows(self) -> int:
        """2f + 3 (proposition 4.2)."""
        return 2 * self.options.attackers + 3

    def choose(self, found: Block | None, count: int) -> int:  # noqa: ARG002
        """The number of the best row; of equal scores the first."""
        assert found is not None  # noqa: S101 - needs_products
        return int(np.argmin(krum_scores(squared_distances(found), self.options.attackers)))

    def combine_rows(self, rows: Rows, received: Block, choice: int) -> Block:  # noqa: ARG002
        """That row."""
        return np.array(rows[choice], np.float64)
