"""What rules that withstand attackers have in common: the number of attackers, and what is done before the rule.

An attacker is a client that sends anything. The rules here need the updates of all clients, and count them alike: a
weight would be a number that the attacker reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.distances import products, squared_distances
from fedsim.learning.examples import FloatArray
from fedsim.learning.randomness import generator
from fedsim.learning.strategies import Block, Passes, StepContext, Strategy, Uplink
from fedsim.plugins import PluginOptions, gettext_noop

Rows = Sequence[FloatArray | Block]
"""What the rule itself combines: a block of each update, or of each mean of some of them; float32 or float64 [b]."""
Group = Sequence[int]
"""The numbers of the updates whose mean is one row."""


@dataclass(frozen=True)
class Prepared:
    """What the passes over all updates have found: the groups (None: each update is a row), and the rule's choice."""

    groups: Sequence[Group] | None
    choice: Any


class RobustRule(Strategy):
    """The base of rules that withstand attackers. A rule overrides `least_rows`, `choose` and `combine_rows`.

    Attributes:
        needs_products: whether `choose` needs the scalar products of the rows.
    """

    uplink = Uplink.EACH_CLIENT
    needs_products: ClassVar[bool] = False

    class Options(PluginOptions):
        """The attackers, and what is done before the rule."""

        attackers: Annotated[int, Field(ge=0, le=10_000)] = Field(
            1,
            title=gettext_noop("Attackers f"),
            description=gettext_noop("Most clients of a round that may send anything."),
        )
        pre_aggregation: Literal["none", "nearest_neighbour_mixing", "bucketing"] = Field(
            "none",
            title=gettext_noop("Before the rule"),
            description=gettext_noop(
                "Replace each update by the mean of the n - f nearest ones, or combine the means of random buckets; "
                "both help where clients have different data."
            ),
        )
        bucket_size: Annotated[int, Field(ge=1, le=1000)] = Field(
            2, title=gettext_noop("Bucket size s"), description=gettext_noop("Updates in each bucket.")
        )

    options: Options

    # ------------------------------------------------------------ what a rule overrides

    def least_rows(self) -> int:
        """Below so many rows the rule promises nothing; by default the honest ones must be a majority."""
        return 2 * self.options.attackers + 1

    def choose(self, found: Block | None, count: int) -> Any:  # noqa: ARG002
        """Decide once for all blocks, from the rows' `products` (float64 [n, n], if needed) and their number."""
        return None

    def combine_rows(self, rows: Rows, received: Block, choice: Any) -> Block:
        """Combine a block of all rows; returns float64 [b]."""
        raise NotImplementedError

    # ------------------------------------------------------------ the strategy

    @property
    def least_updates(self) -> int:
        """Enough for the rule, and for as many rows as buckets give."""
        if self.options.pre_aggregation == "bucketing":
            return (self.least_rows() - 1) * self.options.bucket_size + 1
        return self.least_rows()

    def weight(self, num_examples: int, num_clients: int) -> float:  # noqa: ARG002
        """The number of clients."""
        return float(num_clients)

    def prepare(self, weights: Sequence[float], context: StepContext) -> Passes:
        """One pass for the scalar products, where something needs them."""
        count, mixes = len(weights), self.options.pre_aggregation == "nearest_neighbour_mixing"
        if count < self.least_updates:
            raise BadInput(
                f"with {self.options.attackers} attackers the rule needs at least {self.least_updates} updates in a "
                f"round, here are {count}: choose a larger cohort, or let it withstand fewer attackers"
            )
        found: Block | None = None
        if mixes or self.needs_products:
            found = yield products
        groups: Sequence[Group] | None = None
        if mixes and found is not None:
            groups = nearest_neighbours(found, self.options.attackers)
        elif self.options.pre_aggregation == "bucketing":
            groups = buckets(count, self.options.bucket_size, context)
        if groups is not None and found is not None:
            found = products_of_means(found, groups)
        return Prepared(groups, self.choose(found, count if groups is None else len(groups)))

    def combine(self, updates: Sequence[FloatArray], weights: Sequence[float], received: Block, prepared: Any) -> Block:  # noqa: ARG002
        """The rule, on the updates or on the means of the groups."""
        rows: Rows = updates
        if prepared.groups is not None:
            rows = [mean_of(updates, group) for group in prepared.groups]
        return self.combine_rows(rows, received, prepared.choice)


# ---------------------------------------------------------------- before the rule


def nearest_neighbours(found: Block, attackers: int) -> list[Group]:
    """Nearest-neighbour mixing (Allouah et al. 2023, algorithm 2): each update with those nearest to it, n - f in all.

    Args:
        found: the scalar products of the updates, float64 [n, n].
        attackers: f.
    """
    distances = squared_distances(found)
    order = np.argsort(distances, axis=1, kind="stable")
    return [sorted(map(int, row[: len(found) - attackers])) for row in order]


def buckets(count: int, size: int, context: StepContext) -> list[Group]:
    """Bucketing (Karimireddy et al. 2022, algorithm 1): the updates in random order, in buckets of `size`."""
    order = generator(context.seed, "bucketing", context.round).permutation(count)
    return [sorted(map(int, order[start : start + size])) for start in range(0, count, size)]


def products_of_means(found: Block, groups: Sequence[Group]) -> Block:
    """The scalar products of the groups' means, float64 [g, g], from those of the updates."""
    rows = np.array([found[list(group)].mean(axis=0) for group in groups])
    return np.array([rows[:, list(group)].mean(axis=1) for group in groups]).T


def mean_of(rows: Rows, group: Group) -> Block:
    """The mean of a group in a block, float64 [b]."""
    total = np.array(rows[group[0]], np.float64)
    for number in group[1:]:
        total += rows[number]
    total /= len(group)
    return total


def combination(rows: Rows, factors: Sequence[float], received: Block) -> Block:
    """Received + Σ factor · (row - received), float64 [b], in the order of the rows."""
    total = received.copy()
    for row, factor in zip(rows, factors, strict=True):
        if factor:
            total += factor * np.subtract(row, received)
    return total
