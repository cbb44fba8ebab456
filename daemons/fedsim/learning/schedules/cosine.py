"""Cosine decay with a warm-up."""

from __future__ import annotations

from math import cos, pi
from typing import Annotated

from pydantic import Field

from fedsim.learning.schedules import Schedule
from fedsim.plugins import PluginOptions, gettext_noop


class Cosine(Schedule):
    """A linear warm-up (Goyal et al. 2017), then half a cosine (Loshchilov and Hutter 2017, equation 5, no restarts).

    Of T rounds the first W warm up: round t has η·t / (W + 1). The s-th of the n = T - W others, counted from 0, has
    η_min + (η - η_min)·(1 + cos(π·s / n)) / 2.
    """

    title = gettext_noop("cosine – a warm-up, then along a cosine towards zero")
    depends_on_num_rounds = True

    class Options(PluginOptions):
        """The warm-up, and where the cosine ends."""

        warmup_rounds: Annotated[int, Field(ge=0, le=100_000)] = Field(
            0,
            title=gettext_noop("Warm-up"),
            description=gettext_noop("Rounds in which the learning rate rises to its full size."),
        )
        least_share: Annotated[float, Field(ge=0, le=1)] = Field(
            0.0,
            title=gettext_noop("Least share"),
            description=gettext_noop("η_min, to which the cosine falls, as a share of the learning rate."),
        )

    options: Options

    def factor(self, round_number: int, num_rounds: int) -> float:
        """The warm-up, then the cosine."""
        warm_up, least = self.options.warmup_rounds, self.options.least_share
        if round_number <= warm_up:
            return round_number / (warm_up + 1)
        progress = (round_number - warm_up - 1) / (num_rounds - warm_up)
        return least + (1 - least) * (1 + cos(pi * progress)) / 2
