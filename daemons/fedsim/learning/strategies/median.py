"""The coordinate-wise median."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from fedsim.learning.order_statistics import middle_mean
from fedsim.learning.robust import RobustRule, Rows
from fedsim.learning.strategies import Block
from fedsim.plugins import gettext_noop


class Median(RobustRule):
    """The coordinate-wise median of the clients' parameters (Yin et al. 2018, algorithm 1); all clients count alike."""

    title = gettext_noop("Median – of each coordinate, withstands outliers")

    class Options(RobustRule.Options):
        """As for every robust rule; the median itself needs to know no number of attackers."""

        attackers: Annotated[int, Field(ge=0, le=10_000)] = Field(
            0,
            title=gettext_noop("Attackers f"),
            description=gettext_noop("Most clients of a round that may send anything."),
        )

    options: Options

    def combine_rows(self, rows: Rows, received: Block, choice: Any) -> Block:  # noqa: ARG002
        """The middle value, or the mean of the two middle values."""
        return middle_mean(rows, (len(rows) - 1) // 2)
