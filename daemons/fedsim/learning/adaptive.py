"""What adaptive server steps have in common (Reddi et al. 2021, "Adaptive federated optimization", algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim.learning.strategies import Block, StepContext, Weighted
from fedsim.plugins import gettext_noop

MOMENTUM, SECOND = "momentum", "second_moment"


class AdaptiveStep(Weighted):
    """m ← β1·m + (1 - β1)·Δ; v by `second_moment`; x ← x + η·m / (√v + τ), where Δ is the mean of the clients' changes.

    v begins at τ² (the paper demands v ≥ τ²). What is kept is v - τ², because every state begins at zero.
    """

    class Options(Weighted.Options):
        """The weighting and the server's step."""

        learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
            0.01, title=gettext_noop("Server learning rate η"), description=gettext_noop("The server's step size η.")
        )
        beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.9,
            title=gettext_noop("β1"),
            description=gettext_noop("The share of the mean of earlier changes that is kept."),
        )
        tau: Annotated[float, Field(gt=0, le=1)] = Field(
            1e-3,
            title=gettext_noop("Adaptivity τ"),
            description=gettext_noop("The larger, the less a coordinate's own history decides its step."),
        )

    options: Options
    server_state = (MOMENTUM, SECOND)

    def second_moment(self, second: Block, change: Block) -> Block:
        """The new v from the old one and Δ, float64 [b]."""
        raise NotImplementedError

    def step(
        self,
        received: Block,
        combined: Block,
        state: Mapping[str, Block],
        context: StepContext,  # noqa: ARG002
    ) -> tuple[Block, dict[str, Block]]:
        """Algorithm 2, lines 11 to 15."""
        beta1, tau = self.options.beta1, self.options.tau
        change = combined - received
        momentum = beta1 * state[MOMENTUM] + (1 - beta1) * change
        second = self.second_moment(state[SECOND] + tau**2, change)
        new = received + self.options.learning_rate * momentum / (np.sqrt(np.maximum(second, 0.0)) + tau)
        return new, {MOMENTUM: momentum, SECOND: second - tau**2}


class DecayingStep(AdaptiveStep):
    """A step that forgets old changes, by β2."""

    class Options(AdaptiveStep.Options):
        """The weighting and the server's step."""

        beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.99, title=gettext_noop("β2"), description=gettext_noop("The share of the second moment that is kept.")
        )

    options: Options
