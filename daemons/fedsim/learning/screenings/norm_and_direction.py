"""Screening by the size and the direction of an update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.learning.examples import FloatArray
from fedsim.learning.screenings import Screening, UpdateFinding
from fedsim.learning.strategies import Block, Passes
from fedsim.plugins import PluginOptions, gettext_noop

NORM, NORM_RATIO, COSINE = "norm", "norm_ratio", "cosine"


class Record(Screening):
    """Records how far each update is from the model of the round, compared with the others, and in which direction.

    `norm` is the L2 norm of the update minus the received model, `norm_ratio` its ratio to the median of the round's
    norms (the robust reference of norm bounding, Sun et al. 2019), `cosine` that of the angle between the update's
    direction and the mean direction of the others (as in FoolsGold and FLTrust: Fung et al. 2020, Cao et al. 2021).
    Each direction counts alike in that mean, whatever the update's norm and weight, so that one huge update cannot make
    the honest ones look like outliers.

    By default no direction is outside. A model that has converged moves no further because the clients' updates add up
    to nothing: then each points against the sum of the others, and a client with much data points against all of them.
    """

    title = gettext_noop("record – norm and direction of each update")

    class Options(PluginOptions):
        """What is outside."""

        max_norm_ratio: Annotated[float, Field(ge=1, le=1e9)] = Field(
            10.0,
            title=gettext_noop("Maximum norm ratio"),
            description=gettext_noop("An update whose norm is more than this many times the round's median is outside"),
        )
        min_cosine: Annotated[float, Field(ge=-1, le=1)] = Field(
            -1.0,
            title=gettext_noop("Minimum cosine"),
            description=gettext_noop(
                "An update with a lower cosine to the mean direction of the others is outside; -1: none is"
            ),
        )

    options: Options

    def passes(self, weights: Sequence[float]) -> Passes:
        """Two passes: the norms, then each direction's product with the sum of all directions."""
        squares: Block = yield _squares
        norms = np.sqrt(squares)
        known = np.isfinite(norms) & (norms > 0)
        scales = np.divide(1.0, norms, out=np.zeros_like(norms), where=known)
        if not len(squares):  # a model without parameters
            return [UpdateFinding() for _ in weights]

        def products(updates: Sequence[FloatArray], received: Block) -> Block:
            directions = [
                np.multiply(np.subtract(update, received), scale) if scale else None
                for update, scale in zip(updates, scales, strict=True)
            ]
            total = np.zeros_like(received)
            for direction in directions:
                if direction is not None:
                    total += direction
            own = [0.0 if direction is None else _dot(direction, total) for direction in directions]
            return np.array([*own, _dot(total, total)])

        *own, square = yield products
        cosines = [
            _cosine(float(product), float(square)) if one else 0.0 for product, one in zip(own, known, strict=True)
        ]
        finite = norms[np.isfinite(norms)]
        median = float(np.median(finite)) if len(finite) else 0.0
        return [self._finding(float(norm), median, cosine) for norm, cosine in zip(norms, cosines, strict=True)]

    def _finding(self, norm: float, median: float, cosine: float) -> UpdateFinding:
        if not np.isfinite(norm):
            return UpdateFinding({NORM: norm, NORM_RATIO: norm, COSINE: np.nan}, "it is not finite")
        # Where most updates change nothing, there is no size to compare with.
        ratio = norm / median if median > 0 else 1.0
        reasons = []
        if ratio > self.options.max_norm_ratio:
            reasons.append(f"its norm is {ratio:.2g} times the median, more than {self.options.max_norm_ratio:g}")
        if cosine < self.options.min_cosine:
            reasons.append(
                f"its direction has the cosine {cosine:.2g} to the others', less than {self.options.min_cosine:g}"
            )
        return UpdateFinding({NORM: norm, NORM_RATIO: ratio, COSINE: cosine}, " and ".join(reasons))


class Exclude(Record):
    """As `record`, and leaves updates that are outside out of the aggregation, unless they are half of them or more."""

    title = gettext_noop("exclude – as record, and leave outliers out")
    excludes = True


def _squares(updates: Sequence[FloatArray], received: Block) -> Block:
    """The squared norm of each update's difference from the received model."""
    found = []
    for update in updates:
        difference = np.subtract(update, received)
        found.append(_dot(difference, difference))
    return np.array(found)


def _dot(one: Block, other: Block) -> float:
    """The scalar product; einsum sums in one order, whatever number of threads BLAS would use."""
    return float(np.einsum("i,i->", one, other))


def _cosine(product: float, square: float) -> float:
    """The cosine between a direction and the sum of the others.

    Args:
        product: of the direction, a unit vector, and the sum of all directions.
        square: of the norm of that sum.
    """
    others = square - 2 * product + 1  # the squared norm of the sum without this direction
    return float(np.clip((product - 1) / np.sqrt(others), -1, 1)) if others > 1e-12 else 0.0
