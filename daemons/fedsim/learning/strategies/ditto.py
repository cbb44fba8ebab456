"""Ditto."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.learning.strategies import ClientRound, Parts, Weighted
from fedsim.plugins import gettext_noop


class Ditto(Weighted):
    """FedAvg, while each client trains a model of its own, held near the global one (Li et al. 2021, algorithm 1).

    Its own model v minimises the client's loss + λ/2 · |v - w|², w the round's global model; it begins as the first one
    that the client receives.
    """

    title = gettext_noop("Ditto – a personal model near the global one")

    class Options(Weighted.Options):
        """The weighting and the pull."""

        regularization: Annotated[float, Field(ge=0, le=1000)] = Field(
            0.1,
            title=gettext_noop("Regularisation λ"),
            description=gettext_noop("Pull of each client's own model towards the global model."),
        )

    options: Options
    personal_model = True

    def adjust_personal_gradients(
        self,
        gradients: Parts,
        parameters: Parts,
        received: Parts,
        client: ClientRound,  # noqa: ARG002
    ) -> None:
        """Add λ · (v - w)."""
        for gradient, own, anchor in zip(gradients, parameters, received, strict=True):
            gradient.add_(own - anchor, alpha=self.options.regularization)
