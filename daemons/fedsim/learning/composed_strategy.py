"""A strategy whose parts come from several."""

from __future__ import annotations

from fedsim.learning.phases import distinct_phases
from fedsim.learning.strategies import Strategy


class ComposedStrategy(Strategy):
    """A strategy whose three parts come from up to three strategies."""

    def __init__(self, client: Strategy, rule: Strategy, server: Strategy) -> None:
        super().__init__()
        self.uplink, self.uplink_arrays, self.server_state = rule.uplink, client.uplink_arrays, server.server_state
        self.uplink_metrics = (*client.uplink_metrics, *server.uplink_metrics)
        self.downlink_arrays, self.client_state = client.downlink_arrays, client.client_state
        self.phases = distinct_phases((*client.phases, *rule.phases, *server.phases))
        self._least_updates = rule.least_updates
        self.adjust_gradients = client.adjust_gradients  # type: ignore[method-assign]
        self.finish_client = client.finish_client  # type: ignore[method-assign]
        self.personal_model = client.personal_model
        self.adjust_personal_gradients = client.adjust_personal_gradients  # type: ignore[method-assign]
        self.personal_tensors, self.trains = client.personal_tensors, client.trains  # type: ignore[method-assign]
        self.weight, self.prepare, self.combine = rule.weight, rule.prepare, rule.combine  # type: ignore[method-assign]
        self.step = server.step  # type: ignore[method-assign]

    @property
    def least_updates(self) -> int:
        """Of the rule."""
        return self._least_updates
