"""Decay in steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.learning.schedules.decay import Decay
from fedsim.plugins import gettext_noop


class StepDecay(Decay):
    """Multiplies the learning rate by γ every `every` rounds: η·γ^⌊(t - 1) / every⌋ in round t."""

    title = gettext_noop("step – less every few rounds")

    class Options(Decay.Options):
        """When the rate decays, and as of every decay."""

        every: Annotated[int, Field(ge=1, le=100_000)] = Field(
            10, title=gettext_noop("Every"), description=gettext_noop("How many rounds have the same learning rate.")
        )

    options: Options

    def factor(self, round_number: int, num_rounds: int) -> float:  # noqa: ARG002
        """max(γ^⌊(t - 1) / every⌋, least share)."""
        return self.decayed((round_number - 1) // self.options.every)
