"""Training many clients at once, whatever their network: their parameters are stacked, and torch.func maps over them.

On a processor that is no faster than one client after another; a GPU is busy only with many clients together.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fedsim.learning.engines import ClientData
from fedsim.learning.examples import FloatArray
from fedsim.learning.grouped import GroupBatches, GroupTrainer, squares_moved
from fedsim.learning.networks import Prepares, as_tensor, parts_of
from fedsim.learning.schedules import Schedule

_Parameters = dict[str, Tensor]
_COPIES = 2
"""Parameters and their gradients."""


def can_stack(model: nn.Module, feature_shape: tuple[int, ...]) -> bool:
    """Whether clients of a network can be trained together: it draws no random numbers, and torch can map over it."""
    if isinstance(model, Prepares):
        return False
    device = next(model.parameters()).device
    batch = torch.zeros(1, 2, *feature_shape, device=device)
    parameters = {name: value.detach()[None] for name, value in model.named_parameters()}
    labels = torch.zeros(1, 2, dtype=torch.int64, device=device)
    try:
        _gradients(model)(parameters, batch, labels, torch.ones(1, 2, device=device))
    except RuntimeError:  # torch's only class for what it cannot map over
        return False
    return True


def activation_bytes(model: nn.Module, feature_shape: tuple[int, ...], batch_size: int) -> int:
    """What autograd keeps for one batch, with the parameters that it keeps; nothing is computed."""
    described = deepcopy(model).to("meta")
    found = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal found
        found += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        described(torch.empty(batch_size, *feature_shape, device="meta"))
    return found


class StackedTrainer(GroupTrainer):
    """Trains the clients of a group by one call for each step."""

    def __init__(self, data: ClientData, model: nn.Module, schedule: Schedule, group_bytes: int) -> None:
        """`model` is on the device that trains."""
        super().__init__(data, model.train(), schedule, group_bytes)
        self.device = next(model.parameters()).device
        shape, settings = data.train.feature_shape, data.settings
        self._example_bytes = 4 * prod(shape)
        self._fixed = 4 * _COPIES * self._size + activation_bytes(model, shape, settings.local_batch_size)

    def client_bytes(self, num_examples: int) -> int:
        """Parameters, gradients, activations of a batch, and examples."""
        return self._fixed + num_examples * self._example_bytes

    def train_group(self, batches: GroupBatches, global_vector: FloatArray) -> _StackedGroup:
        """See `GroupTrainer`."""
        received = as_tensor(global_vector).to(self.device)
        group = _StackedGroup(self.model, received, len(batches.clients))
        group.train(batches)
        return group


class _StackedGroup:
    """Some clients that are trained together; see `TrainedGroup`."""

    def __init__(self, model: nn.Module, received: Tensor, count: int) -> None:
        self._model = model
        self._received = parts_of(model, received)
        names = [name for name, _ in model.named_parameters()]
        self._parameters = {
            name: part.expand(count, *part.shape).clone(memory_format=torch.contiguous_format)
            for name, part in zip(names, self._received, strict=True)
        }
        self._loss = torch.zeros(count, dtype=torch.float64, device=received.device)

    def train(self, batches: GroupBatches) -> None:
        """Take all steps of the round."""
        device = self._loss.device
        x, labels = batches.x.to(device), batches.labels.to(device)
        clients = torch.arange(len(batches.clients), device=device)[:, None]
        gradients = _gradients(self._model)
        for rows, scale in batches.steps:
            batch, scales = rows.to(device), scale.to(device)
            changes, losses = gradients(self._parameters, x[clients, batch], labels[clients, batch], scales)
            for name, change in changes.items():
                self._parameters[name].add_(change)
            self._loss += torch.where(scales != 0, losses, 0.0).sum(1, dtype=torch.float64)

    def norms(self) -> list[float]:
        """See `TrainedGroup`."""
        squares = torch.zeros_like(self._loss)
        for trained, received in zip(self._parameters.values(), self._received, strict=True):
            squares += squares_moved(trained, received)
        found: list[float] = squares.sqrt().tolist()
        return found

    def losses(self) -> list[float]:
        """See `TrainedGroup`."""
        found: list[float] = self._loss.tolist()
        return found

    def copy_to(self, place: int, vector: Tensor) -> None:
        """See `TrainedGroup`."""
        for part, trained in zip(parts_of(self._model, vector), self._parameters.values(), strict=True):
            part.copy_(trained[place])

    def add_to(self, totals: Tensor, shares: Tensor) -> None:
        """See `TrainedGroup`."""
        single = shares.to(self._loss.device, torch.float32)
        for part, trained in zip(parts_of(self._model, totals), self._parameters.values(), strict=True):
            part.add_(torch.mv(trained.flatten(1).t(), single).view(part.shape).to(part.device))


def _gradients(model: nn.Module) -> Callable[[_Parameters, Tensor, Tensor, Tensor], tuple[_Parameters, Tensor]]:
    """A function of parameters, features, labels and scales of all clients.

    It gives the gradients of each client's cross-entropy times its scales, summed over the batch, and losses [K, b].
    """

    def scaled(parameters: _Parameters, x: Tensor, labels: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        losses = functional.cross_entropy(functional_call(model, parameters, (x,)), labels, reduction="none")
        return (losses * scales).sum(), losses

    found: Callable[..., tuple[_Parameters, Tensor]] = vmap(grad(scaled, has_aux=True), randomness="error")
    return found
