"""The geometric median."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.learning.robust import RobustRule, Rows, combination
from fedsim.learning.strategies import Block
from fedsim.plugins import gettext_noop


class GeometricMedian(RobustRule):
    """The point with the least sum of distances to the updates, by the smoothed Weiszfeld algorithm.

    RFA, Pillutla et al. 2022, algorithm 2, with equal weights α: β_k ∝ α_k / max(ν, |v - w_k|), v ← Σ β_k w_k.
    """

    title = gettext_noop("Geometric median – RFA, least sum of distances")
    needs_products = True

    class Options(RobustRule.Options):
        """The attackers, and the algorithm's accuracy."""

        attackers: Annotated[int, Field(ge=0, le=10_000)] = Field(
            0,
            title=gettext_noop("Attackers f"),
            description=gettext_noop("Most clients of a round that may send anything."),
        )
        iterations: Annotated[int, Field(ge=1, le=10_000)] = Field(
            8, title=gettext_noop("Iterations R"), description=gettext_noop("Steps of the algorithm.")
        )
        smoothing: Annotated[float, Field(gt=0, le=1)] = Field(
            1e-6,
            title=gettext_noop("Smoothing ν"),
            description=gettext_noop("Least distance by which an update's weight is divided."),
        )

    options: Options

    def choose(self, found: Block | None, count: int) -> list[float]:
        """The weights β of the rows. The distances to v follow from the rows' products, so that no pass is needed."""
        assert found is not None  # noqa: S101 - needs_products
        weights = np.full(count, 1 / count)
        for _ in range(self.options.iterations):
            weights = 1 / np.maximum(self.options.smoothing, distances_to(found, weights))
            weights /= weights.sum()
        return [float(weight) for weight in weights]

    def combine_rows(self, rows: Rows, received: Block, choice: list[float]) -> Block:
        """Σ β_k w_k."""
        return combination(rows, choice, received)


def distances_to(found: Block, factors: Block) -> Block:
    """The distances of rows to the point received + Σ factor · (row - received), float64 [n].

    Args:
        found: the scalar products of `row - received`, float64 [n, n].
        factors: float64 [n].
    """
    with_point = np.einsum("ij,j->i", found, factors)
    square = float(np.einsum("i,i->", factors, with_point))
    return np.asarray(np.sqrt(np.maximum(np.diagonal(found) - 2 * with_point + square, 0.0)))
