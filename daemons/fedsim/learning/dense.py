"""Training many clients at once, where the network is dense layers: batched products written by hand.

Plain SGD on cross-entropy with weights W_1 … W_L needs no gradient in memory: each step's deltas go into the weights of
all clients in place. Where a client has few examples, even its first layer is not touched: a step changes W_1 by
-lr·δᵀ·X, hence the first activations X·W_1ᵀ of all its examples by -lr·(X·Xᵀ)·δ. So the activations are trained, with
the Gram matrix X·Xᵀ, and the sum of all δᵀ·X is one product at the end of the round. The squared norm of that sum,
tr(δᵀ·X·Xᵀ·δ), is the product of δ with what the activations have moved by, so that it needs no weights either. All that
is exact algebra; sums are rounded in another order than when one client is trained after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.learning.engines import ClientData
from fedsim.learning.examples import FloatArray
from fedsim.learning.grouped import GroupBatches, GroupTrainer, squares_moved
from fedsim.learning.networks import as_tensor, parts_of
from fedsim.learning.schedules import Schedule


@dataclass(frozen=True)
class _Layer:
    """A layer of all clients of a group, or of the global model: weights [K, in, out], biases [K, 1, out]."""

    weights: Tensor
    biases: Tensor


def dense_layers(model: nn.Module) -> list[nn.Linear] | None:
    """The linear layers of a network that is these alone, with rectifiers between them; None for any other network."""
    if type(model) is not nn.Sequential:
        return None
    modules = [module for module in model if type(module) is not nn.Flatten]
    linear, between = modules[::2], modules[1::2]
    fits = len(modules) % 2 == 1 and all(type(module) is nn.ReLU for module in between)
    layers = [module for module in linear if type(module) is nn.Linear and module.bias is not None]
    return layers if fits and len(layers) == len(linear) and not _flattens_late(model) else None


def _flattens_late(model: nn.Sequential) -> bool:
    return any(type(module) is nn.Flatten for module in list(model)[1:])


class DenseTrainer(GroupTrainer):
    """Trains networks of dense layers."""

    def __init__(self, data: ClientData, model: nn.Module, schedule: Schedule, group_bytes: int) -> None:
        """`model` is the network, of which only the shapes are used."""
        super().__init__(data, model, schedule, group_bytes)
        layers = dense_layers(model)
        if layers is None:
            raise ValueError("the network is not dense layers alone")
        self._shapes = [(layer.in_features, layer.out_features) for layer in layers]

    def client_bytes(self, num_examples: int) -> int:
        """Weights or activations, and examples; what is needed for norms, a tenth of it at most, is not counted."""
        inputs, units = self._shapes[0]
        upper = sum(inputs * outputs for inputs, outputs in self._shapes[1:])
        keeps = self.keeps_activations(num_examples, self.data.settings.num_steps(num_examples))
        first = num_examples * (2 * units + num_examples) if keeps else inputs * units
        return 4 * (upper + first + num_examples * inputs)

    def keeps_activations(self, num_examples: int, num_steps: int) -> bool:
        """Whether the first layer of clients with this many examples and steps is trained by its activations.

        Where there is a single step nothing is saved by them, but by few examples.
        """
        inputs, units = self._shapes[0]
        return num_examples <= (2 * inputs if num_steps > 1 else units)

    def train_group(self, batches: GroupBatches, global_vector: FloatArray) -> _Group:
        """See `GroupTrainer`."""
        parts = parts_of(self.model, as_tensor(global_vector))
        received = [_Layer(w.t()[None], b[None, None]) for w, b in zip(parts[::2], parts[1::2], strict=True)]
        group = _Group(self.model, batches, received, self.keeps_activations(max(batches.sizes), len(batches.steps)))
        group.train(batches)
        return group


class _Group:
    """Some clients that are trained together; see `TrainedGroup`."""

    def __init__(
        self, model: nn.Module, batches: GroupBatches, received: Sequence[_Layer], keeps_activations: bool
    ) -> None:
        self._model = model
        self._received = received
        self._dual = keeps_activations
        first, count = int(self._dual), len(batches.clients)
        self._x = batches.x.flatten(2)
        self._layers = [
            _Layer(
                layer.weights.expand(count, -1, -1).clone(memory_format=torch.contiguous_format),
                layer.biases.expand(count, -1, -1).clone(memory_format=torch.contiguous_format),
            )
            for layer in received[first:]
        ]
        self._loss = torch.zeros(count, dtype=torch.float64)
        self._squares = torch.zeros(count, dtype=torch.float64)

    def train(self, batches: GroupBatches) -> None:
        """Take all steps of the round."""
        rows = torch.arange(len(batches.clients))[:, None]
        if self._dual:
            first = self._received[0]
            begun = torch.addmm(first.biases[0], self._x.flatten(0, 1), first.weights[0]).view(*self._x.shape[:2], -1)
            self._hidden, self._moved = begun.clone(), torch.zeros_like(begun)
            # 1: the bias is a feature that is 1.
            gram = torch.bmm(self._x, self._x.transpose(1, 2)).add_(1.0)
        for batch, scale in batches.steps:
            delta = self._step(rows, batch, batches.labels[rows, batch], scale)
            if self._dual:
                self._moved[rows, batch] += delta
                self._hidden.baddbmm_(gram[rows, batch].transpose(1, 2), delta)
        for layer, received in zip(self._layers, self._received[int(self._dual) :], strict=True):
            self._squares += squares_moved(layer.weights, received.weights[0])
            self._squares += squares_moved(layer.biases, received.biases[0])
        if self._dual:
            # Rounded, the squares of a client that has hardly moved can be below 0.
            moved = self._hidden.sub_(begun).mul_(self._moved).sum((1, 2), dtype=torch.float64)
            self._squares += moved.clamp_(min=0)

    def _step(self, rows: Tensor, batch: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        """One step of all clients; returns -lr times the gradient of the lowest outputs that were not computed here.

        With activations that is what they have to change by, before the Gram matrix; else nothing that is used.
        """
        if self._dual:
            outputs = self._hidden[rows, batch]
            inputs = [outputs.relu_()] if self._layers else []
        else:
            inputs = [self._x[rows, batch]]
        for number, layer in enumerate(self._layers):
            outputs = torch.baddbmm(layer.biases, inputs[-1], layer.weights)
            if number + 1 < len(self._layers):
                inputs.append(outputs.relu_())
        delta = torch.log_softmax(outputs, 2)
        losses = -delta.gather(2, targets[:, :, None]).squeeze(2)
        self._loss += torch.where(scale != 0, losses, 0.0).sum(1, dtype=torch.float64)
        delta.exp_()
        delta.scatter_add_(2, targets[:, :, None], torch.full_like(targets, -1, dtype=delta.dtype)[:, :, None])
        delta.mul_(scale[:, :, None])
        for number in range(len(self._layers) - 1, -1, -1):
            layer, entered = self._layers[number], inputs[number]
            below = torch.bmm(delta, layer.weights.transpose(1, 2)).mul_(entered > 0) if number or self._dual else None
            layer.weights.baddbmm_(entered.transpose(1, 2), delta)
            layer.biases.add_(delta.sum(1, keepdim=True))
            if below is not None:
                delta = below
        return delta

    def norms(self) -> list[float]:
        """See `TrainedGroup`."""
        found: list[float] = self._squares.sqrt().tolist()
        return found

    def losses(self) -> list[float]:
        """See `TrainedGroup`."""
        found: list[float] = self._loss.tolist()
        return found

    def copy_to(self, place: int, vector: Tensor) -> None:
        """See `TrainedGroup`."""
        parts = parts_of(self._model, vector)
        for layer, (weights, biases) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            self._copy_layer(layer, place, weights, biases)

    def add_to(self, totals: Tensor, shares: Tensor) -> None:
        """See `TrainedGroup`."""
        parts = parts_of(self._model, totals)
        for layer, (weights, biases) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            self._add_layer(layer, shares, weights, biases)

    def _copy_layer(self, layer: int, place: int, weights: Tensor, biases: Tensor) -> None:
        """Write one client's layer into `weights` [out, in] and `biases` [out]."""
        if layer or not self._dual:
            trained = self._layers[layer - self._dual]
            weights.copy_(trained.weights[place].t())
            biases.copy_(trained.biases[place, 0])
        else:
            moved = self._moved[place]
            torch.addmm(self._received[0].weights[0].t(), moved.t(), self._x[place], out=weights)
            torch.add(self._received[0].biases[0, 0], moved.sum(0), out=biases)

    def _add_layer(self, layer: int, shares: Tensor, weights: Tensor, biases: Tensor) -> None:
        """Add the clients' layers, times their shares, to the float64 totals `weights` [out, in], `biases` [out]."""
        single = shares.to(torch.float32)
        if layer or not self._dual:
            trained = self._layers[layer - self._dual]
            total = torch.mv(trained.weights.flatten(1).t(), single)
            weights.add_(total.view(trained.weights.shape[1:]).t())
            biases.add_(torch.mv(trained.biases.flatten(1).t(), single))
        else:
            moved = self._moved * single[:, None, None]
            weights.add_(torch.mm(moved.flatten(0, 1).t(), self._x.flatten(0, 1)))
            weights.add_(self._received[0].weights[0].t(), alpha=float(shares.sum()))
            biases.add_(moved.sum((0, 1))).add_(self._received[0].biases[0, 0], alpha=float(shares.sum()))
