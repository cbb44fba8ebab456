"""FedDyn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from fedsim.learning.strategies import Block, ClientRound, Parts, StepContext, Strategy
from fedsim.plugins import PluginOptions, gettext_noop

GRADIENT = "gradient"
"""∇L_k of the client's last round, as its first-order condition gives it."""
DRIFT = "drift"
"""h of the server."""


class FedDyn(Strategy):
    """Dynamic regularisation: clients that agree are at the minimum of the sum (Acar et al. 2021, algorithm 1)."""

    title = gettext_noop("FedDyn – dynamic regularisation of each client")

    class Options(PluginOptions):
        """The regularisation."""

        alpha: Annotated[float, Field(gt=0, le=1000)] = Field(
            0.01, title=gettext_noop("Regularisation α"), description=gettext_noop("Pull towards the global model.")
        )

    options: Options
    server_state = (DRIFT,)
    client_state = (GRADIENT,)

    def adjust_gradients(self, gradients: Parts, parameters: Parts, received: Parts, client: ClientRound) -> None:
        """Of -⟨∇L_k, θ⟩ + α/2 · |θ - θ_server|²: add -∇L_k + α·(θ - θ_server)."""
        for gradient, parameter, anchor, last in zip(
            gradients, parameters, received, client.state[GRADIENT], strict=True
        ):
            gradient.sub_(last).add_(parameter - anchor, alpha=self.options.alpha)

    def finish_client(
        self, parameters: Parts, received: Parts, client: ClientRound
    ) -> tuple[dict[str, Parts], dict[str, Parts]]:
        """∇L_k ← ∇L_k - α·(θ_k - θ_server)."""
        kept = [
            last - self.options.alpha * (parameter - anchor)
            for parameter, anchor, last in zip(parameters, received, client.state[GRADIENT], strict=True)
        ]
        return {}, {GRADIENT: kept}

    def weight(self, num_examples: int, num_clients: int) -> float:  # noqa: ARG002
        """The number of clients: all count the same, as in the paper."""
        return float(num_clients)

    def step(
        self, received: Block, combined: Block, state: Mapping[str, Block], context: StepContext
    ) -> tuple[Block, dict[str, Block]]:
        """H ← h - α·|P|/m·mean(θ_k - θ_server), θ_server ← mean(θ_k) - h/α."""
        share = context.num_clients / context.population
        drift = state[DRIFT] - self.options.alpha * share * (combined - received)
        return combined - drift / self.options.alpha, {DRIFT: drift}
