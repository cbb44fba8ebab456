"""Centered clipping."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.learning.robust import RobustRule, Rows, combination
from fedsim.learning.strategies import Block
from fedsim.learning.strategies.geometric_median import distances_to
from fedsim.plugins import gettext_noop


class CenteredClipping(RobustRule):
    """The mean of updates that are clipped around a centre, which begins at the round's model.

    Karimireddy et al. 2021, algorithm 2: v ← v + mean of (x_i - v) · min(1, τ / |x_i - v|), L times.
    """

    title = gettext_noop("Centered clipping – mean of clipped differences")
    needs_products = True

    class Options(RobustRule.Options):
        """The attackers, the radius and the iterations."""

        attackers: Annotated[int, Field(ge=0, le=10_000)] = Field(
            0,
            title=gettext_noop("Attackers f"),
            description=gettext_noop("Most clients of a round that may send anything."),
        )
        radius: Annotated[float, Field(gt=0, le=1e9)] = Field(
            1.0,
            title=gettext_noop("Clipping radius τ"),
            description=gettext_noop("A difference that is longer is shortened to this length."),
        )
        iterations: Annotated[int, Field(ge=1, le=1000)] = Field(
            3, title=gettext_noop("Iterations L"), description=gettext_noop("Steps of the centre.")
        )

    options: Options

    def choose(self, found: Block | None, count: int) -> list[float]:
        """The centre as factors of the rows: v = received + Σ factor · (row - received)."""
        assert found is not None  # noqa: S101 - needs_products
        factors = np.zeros(count)
        for _ in range(self.options.iterations):
            distances = distances_to(found, factors)
            clipped = np.minimum(1.0, self.options.radius / np.maximum(distances, self.options.radius))
            factors = factors * (1 - clipped.mean()) + clipped / count
        return [float(factor) for factor in factors]

    def combine_rows(self, rows: Rows, received: Block, choice: list[float]) -> Block:
        """The centre."""
        return combination(rows, choice, received)
