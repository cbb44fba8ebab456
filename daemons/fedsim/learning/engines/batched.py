"""The engine that trains many clients at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer, Engine
from fedsim.learning.schedules import Schedule
from fedsim.messages import ModelSpec
from fedsim.plugins import PluginOptions

if TYPE_CHECKING:
    from torch import nn

_LEAST_TOGETHER = 4
"""As many clients' parameters fit into a group for that it is worth training them together."""


class BatchedEngine(Engine):
    """Trains many clients at once where the optimizer is plain SGD and the objective classification.

    On processors that is done for networks of dense layers of which several fit into a group, on a GPU for all networks
    over which torch can map. A network with statistics, personal, frozen, tied or lower-precision tensors, or one that
    draws random numbers, is trained one client after another.
    """

    title = "batched – many clients at once, where the model allows it"
    tolerance = 1e-5

    class Options(PluginOptions):
        """How much is computed at once."""

        group_megabytes: Annotated[int, Field(ge=1, le=100_000)] = Field(
            32,
            title="Group",
            description="Memory for the clients that are trained together, MB; a GPU uses half of what is free.",
        )

    options: Options

    def start(self, data: ClientData, model_spec: ModelSpec, components: Components, device: str) -> ClientTrainer:
        """Build the network, and choose how it can be trained."""
        from torch import float32  # noqa: PLC0415

        from fedsim.learning.engine import SequentialTrainer  # noqa: PLC0415
        from fedsim.learning.networks import input_type, task_network  # noqa: PLC0415
        from fedsim.learning.objectives.classification import Classification  # noqa: PLC0415
        from fedsim.learning.optimizers.sgd import Sgd  # noqa: PLC0415

        optimizer = components.optimizer
        plain = type(optimizer) is Sgd and optimizer.plain and type(components.objective) is Classification
        if plain and components.strategy.trains_plainly:
            network = task_network(model_spec, data.settings, components.strategy, components.model)
            if network.roles.plain and input_type(network.model) == float32:
                shared = data, model_spec, network.model, components.schedule
                trainer = self._on_processors(*shared) if device == "cpu" else self._on_gpu(*shared, device)
                if trainer is not None:
                    return trainer
        return SequentialTrainer(data, model_spec, components, device)

    def _on_processors(
        self, data: ClientData, model_spec: ModelSpec, model: nn.Module, schedule: Schedule
    ) -> ClientTrainer | None:
        from fedsim.learning.dense import DenseTrainer, dense_layers  # noqa: PLC0415 - imports torch
        from fedsim.learning.networks import check_training, num_parameters  # noqa: PLC0415

        group = self.options.group_megabytes << 20
        if dense_layers(model) is None or _LEAST_TOGETHER * 4 * num_parameters(model) > group:
            return None
        check_training(model, model_spec)
        return DenseTrainer(data, model, schedule, group)

    def _on_gpu(
        self, data: ClientData, model_spec: ModelSpec, model: nn.Module, schedule: Schedule, device: str
    ) -> ClientTrainer | None:
        import torch  # noqa: PLC0415

        from fedsim.learning.networks import check_training  # noqa: PLC0415
        from fedsim.learning.stacked import StackedTrainer, can_stack  # noqa: PLC0415

        if not can_stack(model.to(device), model_spec.feature_shape):
            return None
        check_training(model, model_spec, torch.device(device))
        return StackedTrainer(data, model, schedule, torch.cuda.mem_get_info(device)[0] // 2)
