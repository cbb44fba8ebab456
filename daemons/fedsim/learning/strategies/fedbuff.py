"""FedBuff."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from fedsim.learning.buffering import Buffering
from fedsim.learning.strategies import Block, ClientRound, Parts, StepContext, Strategy, Uplink
from fedsim.plugins import PluginOptions, gettext_noop
from fedsim.update import PARAMETERS


class FedBuff(Strategy):
    """Buffered asynchronous aggregation (Nguyen et al. 2022, algorithms 1 and 2, with staleness weights).

    repeat, until w has been moved T times:
        whenever fewer than M clients train, one more begins with the newest w
        if an update arrives: Δ̄ ← Δ̄ + s(τ)·Δ_i, with Δ_i = w_i - w at its start, τ the rounds since then
        if K have arrived: w ← w + η_g·Δ̄/K, and Δ̄ ← 0
    """

    title = gettext_noop("FedBuff – asynchronous rounds of K buffered updates")

    class Options(PluginOptions):
        """The buffer, its clients, and the server's step."""

        buffer_size: Annotated[int, Field(ge=0, le=100_000)] = Field(
            0,
            title=gettext_noop("Buffer size K"),
            description=gettext_noop("How many updates move the model; 0: as many clients as fraction_train says."),
        )
        concurrency: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
            0,
            title=gettext_noop("Concurrency M"),
            description=gettext_noop("How many clients train at once, over all nodes; 0: as many as K."),
        )
        learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
            1.0,
            title=gettext_noop("Server learning rate η_g"),
            description=gettext_noop("The server's step size."),
        )
        staleness_exponent: Annotated[float, Field(ge=0, le=10)] = Field(
            0.5,
            title=gettext_noop("Staleness exponent a"),
            description=gettext_noop(
                "An update that began τ rounds ago counts s(τ) = (1 + τ)^-a; 0.5: 1/√(1 + τ), 0: all count the same."
            ),
        )
        max_staleness: Annotated[int, Field(ge=0, le=1000)] = Field(
            20,
            title=gettext_noop("Maximum staleness"),
            description=gettext_noop("An update that began more rounds ago is discarded."),
        )

    options: Options
    uplink = Uplink.EACH_CLIENT

    @property
    def buffering(self) -> Buffering:  # type: ignore[override]
        """K, M and the maximum of τ."""
        return Buffering(self.options.buffer_size, self.options.concurrency, self.options.max_staleness)

    def finish_client(
        self,
        parameters: Parts,
        received: Parts,
        client: ClientRound,  # noqa: ARG002
    ) -> tuple[dict[str, Parts], dict[str, Parts]]:
        """Send Δ_i, which does not depend on the model that the server has by then."""
        return {PARAMETERS: [own - anchor for own, anchor in zip(parameters, received, strict=True)]}, {}

    def weight(self, num_examples: int, num_clients: int) -> float:  # noqa: ARG002
        """Each client counts the same."""
        return float(num_clients)

    def staleness_weight(self, staleness: int) -> float:
        """s(τ) = (1 + τ)^-a."""
        return float((1 + staleness) ** -self.options.staleness_exponent)

    def step(
        self,
        received: Block,
        combined: Block,
        state: Mapping[str, Block],  # noqa: ARG002
        context: StepContext,
    ) -> tuple[Block, dict[str, Block]]:
        """The mean is Σ s·Δ / Σ s; times the mean of the s it is Δ̄/K."""
        return received + self.options.learning_rate * context.discount * combined, {}
