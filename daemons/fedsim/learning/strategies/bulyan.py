"""Bulyan."""

from __future__ import annotations

import numpy as np

from fedsim.learning.distances import squared_distances
from fedsim.learning.order_statistics import nearest_to_median_mean
from fedsim.learning.robust import Group, RobustRule, Rows
from fedsim.learning.strategies import Block
from fedsim.learning.strategies.multi_krum import krum_scores
from fedsim.plugins import gettext_noop


class Bulyan(RobustRule):
    """Krum n - 2f times, then of each coordinate the n - 4f values nearest to the median (El Mhamdi et al. 2018)."""

    title = gettext_noop("Bulyan – Krum again and again, then near the median")
    needs_products = True

    def least_rows(self) -> int:
        """4f + 3 (section 3)."""
        return 4 * self.options.attackers + 3

    def choose(self, found: Block | None, count: int) -> Group:
        """θ = n - 2f rows: the best one of Krum is taken out, and Krum chooses again among the others."""
        assert found is not None  # noqa: S101 - needs_products
        distances, left = squared_distances(found), list(range(count))
        chosen: list[int] = []
        while len(chosen) < count - 2 * self.options.attackers:
            scores = krum_scores(distances[np.ix_(left, left)], self.options.attackers)
            chosen.append(left.pop(int(np.argmin(scores))))
        return sorted(chosen)

    def combine_rows(self, rows: Rows, received: Block, choice: Group) -> Block:  # noqa: ARG002
        """The mean of the β = θ - 2f values nearest to the median of the chosen rows."""
        return nearest_to_median_mean([rows[number] for number in choice], 2 * self.options.attackers)
