"""SCAFFOLD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from fedsim.learning.strategies import Block, ClientRound, Parts, StepContext, Strategy
from fedsim.plugins import PluginOptions, gettext_noop
from fedsim.update import PARAMETERS

CONTROL = "control"
"""The control variate: c on the server, c_i on each client."""
CHANGE = "control_change"


class Scaffold(Strategy):
    """Control variates against the drift of clients with different data (Karimireddy et al. 2020, option II)."""

    title = gettext_noop("SCAFFOLD – control variates against client drift")

    class Options(PluginOptions):
        """The server's step."""

        learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
            1.0, title=gettext_noop("Server learning rate"), description=gettext_noop("The server's step size η.")
        )

    options: Options
    needs_effective_steps = True
    uplink_arrays = (PARAMETERS, CHANGE)
    server_state = (CONTROL,)
    downlink_arrays = (CONTROL,)
    client_state = (CONTROL,)

    def adjust_gradients(self, gradients: Parts, parameters: Parts, received: Parts, client: ClientRound) -> None:  # noqa: ARG002
        """Gradient ← gradient - c_i + c."""
        for gradient, own, server in zip(gradients, client.state[CONTROL], client.received[CONTROL], strict=True):
            gradient.sub_(own).add_(server)

    def finish_client(
        self, parameters: Parts, received: Parts, client: ClientRound
    ) -> tuple[dict[str, Parts], dict[str, Parts]]:
        """New state: c_i ← c_i - c + (x - y_i) / (K·η_l); with momentum K is what its steps count for."""
        assert client.effective_steps is not None  # noqa: S101 - needs_effective_steps
        scale = 1 / (client.effective_steps * client.learning_rate)
        olds, servers = client.state[CONTROL], client.received[CONTROL]
        changes = [
            (anchor - parameter) * scale - server
            for parameter, anchor, server in zip(parameters, received, servers, strict=True)
        ]
        return {CHANGE: changes}, {CONTROL: [old + change for old, change in zip(olds, changes, strict=True)]}

    def weight(self, num_examples: int, num_clients: int) -> float:  # noqa: ARG002
        """The number of clients: all count the same, as in the paper."""
        return float(num_clients)

    def step(
        self, received: Block, combined: Block, state: Mapping[str, Block], context: StepContext
    ) -> tuple[Block, dict[str, Block]]:
        """New model and state: x ← x + η·mean(y_i - x), c ← c + |S|/N·mean(change of c_i)."""
        share = context.num_clients / context.population
        new = received + self.options.learning_rate * (combined - received)
        return new, {CONTROL: state[CONTROL] + share * context.arrays[CHANGE]}
