"""FedAvg with server momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from fedsim.learning.strategies import Block, StepContext, Weighted
from fedsim.plugins import gettext_noop


class FedAvgM(Weighted):
    """FedAvg with momentum on the server (Hsu et al. 2019, section 4.3): v ← β·v + Δ, w ← w - η·v."""

    title = gettext_noop("FedAvgM – mean with server momentum")

    class Options(Weighted.Options):
        """The weighting and the server's step."""

        learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
            1.0, title=gettext_noop("Server learning rate"), description=gettext_noop("The server's step size η.")
        )
        momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.9,
            title=gettext_noop("Server momentum"),
            description=gettext_noop("The share β of the last step that is kept."),
        )

    options: Options
    server_state = ("momentum",)

    def step(
        self,
        received: Block,
        combined: Block,
        state: Mapping[str, Block],
        context: StepContext,  # noqa: ARG002
    ) -> tuple[Block, dict[str, Block]]:
        """Δ is the received model minus the clients' mean."""
        velocity = self.options.momentum * state["momentum"] + (received - combined)
        return received - self.options.learning_rate * velocity, {"momentum": velocity}
