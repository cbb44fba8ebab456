"""The base of schedules that only decay."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.learning.schedules import Schedule
from fedsim.plugins import PluginOptions, gettext_noop


class Decay(Schedule):
    """Multiplies the learning rate by `decay` again and again, down to a least share of what it was."""

    class Options(PluginOptions):
        """How much of the rate is kept, and of which it never falls short."""

        decay: Annotated[float, Field(gt=0, le=1)] = Field(
            0.5, title=gettext_noop("Decay γ"), description=gettext_noop("What is kept of the learning rate each time.")
        )
        least_share: Annotated[float, Field(gt=0, le=1)] = Field(
            1e-4,
            title=gettext_noop("Least share"),
            description=gettext_noop("The share of the first learning rate at which the decay ends."),
        )

    options: Options

    def decayed(self, times: int) -> float:
        """max(γ^times, least share)."""
        return max(self.options.decay**times, self.options.least_share)
