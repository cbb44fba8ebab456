"""The engine that trains one client after another."""

from __future__ import annotations

from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer, Engine
from fedsim.messages import ModelSpec


class SequentialEngine(Engine):
    """Trains one client after another in this process; a last short batch is kept."""

    title = "sequential – one client after another"

    def start(self, data: ClientData, model_spec: ModelSpec, components: Components, device: str) -> ClientTrainer:
        """Build the network on the device."""
        from fedsim.learning.engine import SequentialTrainer  # noqa: PLC0415 - imports torch

        return SequentialTrainer(data, model_spec, components, device)
