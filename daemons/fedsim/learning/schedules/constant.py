"""The schedule that changes nothing."""

from __future__ import annotations

from fedsim.learning.schedules import Schedule
from fedsim.plugins import gettext_noop


class Constant(Schedule):
    """The same learning rate in each round."""

    title = gettext_noop("constant – the same learning rate in each round")

    def factor(self, round_number: int, num_rounds: int) -> float:  # noqa: ARG002
        """One."""
        return 1.0
