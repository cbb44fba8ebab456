"""The engine that trains many clients at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer, Engine
from fedsim.messages import ModelSpec
from fedsim.plugins import PluginOptions

_LEAST_TOGETHER = 4
"""As many clients' parameters fit into a group for that it is worth training them together."""


class BatchedEngine(Engine):
    """Trains many clients at once where the network is dense layers and the optimizer plain SGD, else one by one.

    A network with statistics, personal, frozen, tied or lower-precision tensors is trained one by one, too; so is one
    of which few fit into a group: one client alone needs less memory and is no slower.
    """

    title = "batched – many clients at once, where the model allows it"
    tolerance = 1e-5

    class Options(PluginOptions):
        """How much is computed at once."""

        group_megabytes: Annotated[int, Field(ge=1, le=100_000)] = Field(
            32, title="Group", description="Memory for the clients that are trained together, MB."
        )

    options: Options

    def start(self, data: ClientData, model_spec: ModelSpec, components: Components, device: str) -> ClientTrainer:
        """Build the network, and choose how it can be trained."""
        from torch import float32  # noqa: PLC0415

        from fedsim.learning.dense import DenseTrainer, dense_layers  # noqa: PLC0415 - imports torch
        from fedsim.learning.engine import SequentialTrainer  # noqa: PLC0415
        from fedsim.learning.networks import check_training, input_type, task_network  # noqa: PLC0415
        from fedsim.learning.objectives.classification import Classification  # noqa: PLC0415
        from fedsim.learning.optimizers.sgd import Sgd  # noqa: PLC0415

        optimizer = components.optimizer
        plain = type(optimizer) is Sgd and optimizer.plain and type(components.objective) is Classification
        if device == "cpu" and plain and components.strategy.trains_plainly:
            network = task_network(model_spec, data.settings, components.strategy, components.model)
            model = network.model
            group = self.options.group_megabytes << 20
            small = _LEAST_TOGETHER * 4 * sum(parameter.numel() for parameter in model.parameters()) <= group
            if small and dense_layers(model) is not None and network.roles.plain and input_type(model) == float32:
                check_training(model, model_spec)
                return DenseTrainer(data, model, components.schedule, group)
        return SequentialTrainer(data, model_spec, components, device)
