"""Training many clients at once, where the network is dense layers: batched products written by hand.

Plain SGD on cross-entropy with weights W_1 … W_L needs no gradient in memory: each step's deltas go into the weights of
all clients in place. Where a client has few examples, even its first layer is not touched: a step changes W_1 by
-lr·δᵀ·X, hence the first activations X·W_1ᵀ of all its examples by -lr·(X·Xᵀ)·δ. So the activations are trained, with
the Gram matrix X·Xᵀ, and the sum of all δᵀ·X is one product at the end of the round. The squared norm of that sum,
tr(δᵀ·X·Xᵀ·δ), is the product of δ with what the activations have moved by, so that it needs no weights either. All that
is exact algebra; sums are rounded in another order than when one client is trained after another.

Clients of different sizes share a batch: what a smaller one lacks is a row of zeros with weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.learning.engines import ClientData
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import FloatArray
from fedsim.learning.networks import as_tensor, check_length, parts_of
from fedsim.learning.schedules import Schedule, learning_rate
from fedsim.update import PARAMETERS, TRAIN_LOSS, Update, of_chunk

_CACHED = 1 << 17
"""So many float32 numbers stay in a processor's cache."""


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


class DenseTrainer:
    """Trains groups of clients together; see `ClientTrainer` and `MeanTrainer`."""

    def __init__(self, data: ClientData, model: nn.Module, schedule: Schedule, group_bytes: int) -> None:
        """`model` is the network, of which only the shapes are used; a group's arrays have about `group_bytes`."""
        self.data = data
        self.schedule = schedule
        self._model = model
        self._group_bytes = group_bytes
        layers = dense_layers(model)
        if layers is None:
            raise ValueError("the network is not dense layers alone")
        self._shapes = [(layer.in_features, layer.out_features) for layer in layers]
        self._size = sum(parameter.numel() for parameter in model.parameters())

    def train(
        self, clients: Sequence[int], round_number: int, global_vector: FloatArray, **_: object
    ) -> Iterator[Update]:
        """Yield the clients' updates in the order of `clients`; see `ClientTrainer`."""
        out = np.empty(self._size, np.float32)
        parts = parts_of(self._model, as_tensor(out))
        for group in self._groups(clients):
            trained = _Group(self, group, round_number, self._received(global_vector))
            for place, client in enumerate(group):
                for layer, (weights, biases) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
                    trained.copy_layer(layer, place, weights, biases)
                yield trained.update(place, client).with_arrays({PARAMETERS: out})

    def train_mean(
        self,
        clients: Sequence[int],
        round_number: int,
        global_vector: FloatArray,
        weight: Callable[[int], float],
        least_shown: int | None = None,
    ) -> Update:
        """The clients' weighted mean, without the update of any of them in memory; see `MeanTrainer`."""
        totals = torch.zeros(self._size, dtype=torch.float64)
        parts = parts_of(self._model, totals)
        weights = {client: weight(self.data.partition.num_examples(client)) for client in clients}
        seen: dict[int, Update] = {}
        # Clients of about equal size together, so that little is computed on rows of zeros.
        for group in self._groups(sorted(clients, key=lambda client: (self.data.num_steps(client), client))):
            trained = _Group(self, group, round_number, self._received(global_vector))
            shares = torch.tensor([weights[client] for client in group], dtype=torch.float64)
            for layer, (total, biases) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
                trained.add_layer(layer, shares, total, biases)
            for place, client in enumerate(group):
                seen[client] = trained.update(place, client).with_norm(trained.norms[place], least_shown)
        mean = totals.div_(sum(weights.values())).to(torch.float32).numpy()
        return of_chunk([seen[client] for client in clients]).with_arrays({PARAMETERS: mean})

    def _received(self, global_vector: FloatArray) -> list[_Layer]:
        check_length(self._model, global_vector)
        parts = parts_of(self._model, as_tensor(global_vector))
        return [_Layer(w.t()[None], b[None, None]) for w, b in zip(parts[::2], parts[1::2], strict=True)]

    def _groups(self, clients: Sequence[int]) -> Iterator[list[int]]:
        """Neighbours in `clients`, as many as `group_bytes` hold of the largest of them."""
        group: list[int] = []
        largest = 0
        for client in clients:
            largest = max(largest, self._client_bytes(self.data.partition.num_examples(client)))
            if group and largest * (len(group) + 1) > self._group_bytes:
                yield group
                group, largest = [], self._client_bytes(self.data.partition.num_examples(client))
            group.append(client)
        if group:
            yield group

    def keeps_activations(self, num_examples: int, num_steps: int) -> bool:
        """Whether the first layer of clients with this many examples and steps is trained by its activations.

        Where there is a single step nothing is saved by them, but by few examples.
        """
        inputs, units = self._shapes[0]
        return num_examples <= (2 * inputs if num_steps > 1 else units)

    def _client_bytes(self, num_examples: int) -> int:
        inputs, units = self._shapes[0]
        upper = sum(inputs * outputs for inputs, outputs in self._shapes[1:])
        keeps = self.keeps_activations(num_examples, self.data.settings.num_steps(num_examples))
        first = num_examples * (3 * units + num_examples) if keeps else inputs * units
        return 4 * (upper + first + num_examples * inputs)


class _Group:
    """Some clients, trained together when it is made.

    Attributes:
        norms: the L2 norm by which each client has moved the parameters.
    """

    def __init__(
        self, trainer: DenseTrainer, clients: Sequence[int], round_number: int, received: Sequence[_Layer]
    ) -> None:
        self._data = trainer.data
        self._learning_rate = learning_rate(trainer.schedule, trainer.data.settings, round_number)
        self._round = round_number
        self._received = received
        self._sizes = [trainer.data.partition.num_examples(client) for client in clients]
        most = max(self._sizes)
        self._dual = trainer.keeps_activations(most, max(map(trainer.data.num_steps, clients)))
        first = int(self._dual)
        count = len(clients)
        # One row more, of zeros, for what a smaller client does not have.
        inputs = received[0].weights.shape[1]
        self._x = torch.zeros(count, most + 1, inputs)
        labels = torch.zeros(count, most + 1, dtype=torch.int64)
        for place, client in enumerate(clients):
            features, known = trainer.data.examples(client)
            self._x[place, : len(features)] = torch.from_numpy(features).flatten(1)
            labels[place, : len(known)] = torch.from_numpy(known)
        self._layers = [
            _Layer(
                layer.weights.expand(count, -1, -1).clone(memory_format=torch.contiguous_format),
                layer.biases.expand(count, -1, -1).clone(memory_format=torch.contiguous_format),
            )
            for layer in received[first:]
        ]
        self._loss = torch.zeros(count, dtype=torch.float64)
        steps, self._passes = self._schedule(clients, most)
        rows = torch.arange(count)[:, None]
        if self._dual:
            flat = torch.addmm(received[0].biases[0], self._x.flatten(0, 1), received[0].weights[0])
            begun = flat.view(count, most + 1, -1)
            self._hidden, self._moved = begun.clone(), torch.zeros_like(begun)
            # 1: the bias is a feature that is 1.
            gram = torch.bmm(self._x, self._x.transpose(1, 2)).add_(1.0)
        for batch, scale in steps:
            delta = self._step(rows, batch, labels[rows, batch], scale)
            if self._dual:
                self._moved[rows, batch] += delta
                self._hidden.baddbmm_(gram[rows, batch].transpose(1, 2), delta)
        squares = sum(map(_squares_moved, self._layers, received[first:]), torch.zeros(count, dtype=torch.float64))
        if self._dual:
            # Rounded, the squares of a client that has hardly moved can be below 0.
            squares += self._hidden.sub_(begun).mul_(self._moved).sum((1, 2), dtype=torch.float64).clamp_(min=0)
        self.norms: list[float] = squares.sqrt().tolist()
        for client, norm, loss in zip(clients, self.norms, self._loss.tolist(), strict=True):
            # A change whose square is no float32 has left everything that can be learned with.
            if not isfinite(norm + loss):
                raise Diverged(round_number, client)

    def _schedule(self, clients: Sequence[int], most: int) -> tuple[list[tuple[Tensor, Tensor]], list[int]]:
        """Each step's rows, int64 [K, b], and -learning_rate / (size of the client's batch), float32 [K, b]."""
        settings = self._data.settings
        size = min(settings.local_batch_size, most)
        orders = [self._data.epochs(self._round, client) for client in clients]
        count = max(map(self._data.num_steps, clients))
        rows = np.full((count, len(clients), size), most, np.int64)
        scales = np.zeros((count, len(clients), size), np.float32)
        for place, epochs in enumerate(orders):
            step = 0
            for examples in epochs:
                for start in range(0, len(examples), settings.local_batch_size):
                    batch = examples[start : start + settings.local_batch_size]
                    rows[step, place, : len(batch)] = batch
                    scales[step, place, : len(batch)] = -self._learning_rate / len(batch)
                    step += 1
        passes = [sum(map(len, epochs)) for epochs in orders]
        return list(zip(torch.from_numpy(rows), torch.from_numpy(scales), strict=True)), passes

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

    def update(self, place: int, client: int) -> Update:
        """A client's update, without its arrays."""
        loss = float(self._loss[place]) / self._passes[place]
        return Update(
            base_round=self._round, client=client, num_examples=self._sizes[place], metrics={TRAIN_LOSS: loss}
        )

    def copy_layer(self, layer: int, place: int, weights: Tensor, biases: Tensor) -> None:
        """Write one client's layer into `weights` [out, in] and `biases` [out]."""
        if layer or not self._dual:
            trained = self._layers[layer - self._dual]
            weights.copy_(trained.weights[place].t())
            biases.copy_(trained.biases[place, 0])
        else:
            moved = self._moved[place]
            torch.addmm(self._received[0].weights[0].t(), moved.t(), self._x[place], out=weights)
            torch.add(self._received[0].biases[0, 0], moved.sum(0), out=biases)

    def add_layer(self, layer: int, shares: Tensor, weights: Tensor, biases: Tensor) -> None:
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


def _squares_moved(trained: _Layer, received: _Layer) -> Tensor:
    """The sum of squares by which each client has moved a layer, float64 [K], by as many clients as stay in cache."""
    squares = (trained.biases - received.biases).square_().sum((1, 2), dtype=torch.float64)
    at_once = max(1, _CACHED // received.weights.numel())
    for weights, found in zip(trained.weights.split(at_once), squares.split(at_once), strict=True):
        found += (weights - received.weights).square_().sum((1, 2), dtype=torch.float64)
    return squares
