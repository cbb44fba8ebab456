"""Exponential decay."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.learning.schedules.decay import Decay
from fedsim.plugins import gettext_noop


class Exponential(Decay):
    """Multiplies the learning rate by γ after each round, as McMahan et al. 2017 for CIFAR: round t has η·γ^(t - 1)."""

    title = gettext_noop("exponential – a little less after each round")

    class Options(Decay.Options):
        """As of every decay, with one that is usual for a single round."""

        decay: Annotated[float, Field(gt=0, le=1)] = Field(
            0.99,
            title=gettext_noop("Decay γ"),
            description=gettext_noop("What is kept of the learning rate after each round."),
        )

    options: Options

    def factor(self, round_number: int, num_rounds: int) -> float:  # noqa: ARG002
        """max(γ^(t - 1), least share)."""
        return self.decayed(round_number - 1)
