"""FedProx."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.learning.strategies import ClientRound, Parts, Weighted
from fedsim.plugins import gettext_noop


class FedProx(Weighted):
    """FedAvg whose clients are pulled to the global model: loss + mu/2 · |w - w_global|² (Li et al. 2020, eq. 2)."""

    title = gettext_noop("FedProx – mean, clients held near the global model")

    class Options(Weighted.Options):
        """The weighting and the pull."""

        mu: Annotated[float, Field(ge=0, le=1000)] = Field(
            0.01, title=gettext_noop("Proximal mu"), description=gettext_noop("Pull towards the global model.")
        )

    options: Options

    def adjust_gradients(self, gradients: Parts, parameters: Parts, received: Parts, client: ClientRound) -> None:  # noqa: ARG002
        """Add the proximal term's gradient, mu · (w - w_global)."""
        for gradient, parameter, anchor in zip(gradients, parameters, received, strict=True):
            gradient.add_(parameter - anchor, alpha=self.options.mu)
