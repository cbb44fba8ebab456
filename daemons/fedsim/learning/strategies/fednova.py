"""FedNova."""

from __future__ import annotations

from collections.abc import Mapping

from fedsim.learning.strategies import Block, ClientRound, Parts, StepContext, Strategy
from fedsim.plugins import gettext_noop
from fedsim.update import EFFECTIVE_STEPS, PARAMETERS


class FedNova(Strategy):
    """Normalised averaging: a client that takes more steps does not count more for it (Wang et al. 2020, equation 6).

    With plain SGD and τ_i steps, d_i = (x - y_i)/τ_i and x ← x - τ_eff·Σ p_i·d_i; τ_eff is Σ p_i·τ_i, p_i is n_i/n.
    With momentum, τ_i is ‖a_i‖ (`Optimizer.effective_steps`). A client sends x - d_i in place of its parameters, so
    that the mean of what is sent is x - Σ p_i·d_i, and reports τ_i.
    """

    title = gettext_noop("FedNova – mean of normalised changes")
    needs_effective_steps = True
    uplink_metrics = (EFFECTIVE_STEPS,)

    def finish_client(
        self, parameters: Parts, received: Parts, client: ClientRound
    ) -> tuple[dict[str, Parts], dict[str, Parts]]:
        """Send x - d_i."""
        assert client.effective_steps is not None  # noqa: S101 - needs_effective_steps
        share = 1 / client.effective_steps
        sent = [anchor + (parameter - anchor) * share for parameter, anchor in zip(parameters, received, strict=True)]
        return {PARAMETERS: sent}, {}

    def step(
        self,
        received: Block,
        combined: Block,
        state: Mapping[str, Block],  # noqa: ARG002
        context: StepContext,
    ) -> tuple[Block, dict[str, Block]]:
        """X ← x + τ_eff · (mean - x); the mean of the τ_i over the examples is τ_eff."""
        return received + context.metrics[EFFECTIVE_STEPS] * (combined - received), {}
