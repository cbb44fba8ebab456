"""Multi-Krum."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.learning.distances import squared_distances
from fedsim.learning.robust import Group, RobustRule, Rows, mean_of
from fedsim.learning.strategies import Block
from fedsim.plugins import gettext_noop


class MultiKrum(RobustRule):
    """The mean of the m updates with the best scores of Krum (Blanchard et al. 2017, section 5)."""

    title = gettext_noop("Multi-Krum – mean of the updates nearest to others")
    needs_products = True

    class Options(RobustRule.Options):
        """The attackers, and how many updates are chosen."""

        chosen: Annotated[int, Field(ge=0, le=10_000)] = Field(
            0,
            title=gettext_noop("Chosen updates m"),
            description=gettext_noop("How many updates are averaged; 0: n - f, all but the attackers."),
        )

    options: Options

    def least_rows(self) -> int:
        """2f + 3, and as many as are chosen besides the attackers."""
        return max(2 * self.options.attackers + 3, self.options.chosen + self.options.attackers)

    def choose(self, found: Block | None, count: int) -> Group:
        """The numbers of the best rows; of equal scores the first counts as the best."""
        assert found is not None  # noqa: S101 - needs_products
        scores = krum_scores(squared_distances(found), self.options.attackers)
        chosen = self.options.chosen or count - self.options.attackers
        return sorted(map(int, np.argsort(scores, kind="stable")[:chosen]))

    def combine_rows(self, rows: Rows, received: Block, choice: Group) -> Block:  # noqa: ARG002
        """Their mean."""
        return mean_of(rows, choice)


def krum_scores(distances: Block, attackers: int) -> Block:
    """Of each row the sum of the squared distances to its n - f - 2 nearest others, float64 [n].

    Args:
        distances: squared, float64 [n, n].
        attackers: f.
    """
    nearest = np.sort(distances, axis=1)[:, 1 : max(2, len(distances) - attackers - 1)]  # the first is its own, zero
    return np.asarray(nearest.sum(axis=1))
