"""Training groups of clients together: what all trainers that do it share.

Clients of different sizes share a batch: what a smaller one lacks is a row of zeros with weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.learning.engines import ClientData
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import FloatArray
from fedsim.learning.networks import check_length, num_parameters
from fedsim.learning.schedules import Schedule, learning_rate
from fedsim.update import PARAMETERS, TRAIN_LOSS, Update, of_chunk


class TrainedGroup(Protocol):
    """Some clients after their training in one round, known by their places in the group."""

    def norms(self) -> list[float]:
        """The L2 norm by which each has moved the parameters; not finite for one that has diverged."""

    def losses(self) -> list[float]:
        """The sum of each client's losses over the examples of all steps."""

    def copy_to(self, place: int, vector: Tensor) -> None:
        """Write a client's flat vector, float32 [P]."""

    def add_to(self, totals: Tensor, shares: Tensor) -> None:
        """Add all clients' flat vectors, times their shares (float64 [K]), to float64 [P]."""


class GroupTrainer:
    """Trains groups of clients together; see `ClientTrainer` and `MeanTrainer`."""

    def __init__(self, data: ClientData, model: nn.Module, schedule: Schedule, group_bytes: int) -> None:
        """A group's arrays have about `group_bytes`."""
        self.data = data
        self.model = model
        self.schedule = schedule
        self._group_bytes = group_bytes
        self._size = num_parameters(model)

    def client_bytes(self, num_examples: int) -> int:
        """What a client of this size adds to the arrays of a group."""
        raise NotImplementedError

    def train_group(self, batches: GroupBatches, global_vector: FloatArray) -> TrainedGroup:
        """Train clients together; the vector is only read."""
        raise NotImplementedError

    def train(
        self, clients: Sequence[int], round_number: int, global_vector: FloatArray, **_: object
    ) -> Iterator[Update]:
        """Yield the clients' updates in the order of `clients`; see `ClientTrainer`."""
        check_length(self.model, global_vector)
        out = np.empty(self._size, np.float32)
        flat = torch.from_numpy(out)
        for group in self._groups(clients):
            trained, updates, _norms = self._trained(group, round_number, global_vector)
            for place, update in enumerate(updates):
                trained.copy_to(place, flat)
                yield update.with_arrays({PARAMETERS: out})

    def train_mean(
        self,
        clients: Sequence[int],
        round_number: int,
        global_vector: FloatArray,
        weight: Callable[[int], float],
        least_shown: int | None = None,
    ) -> Update:
        """The clients' weighted mean, without the update of any of them in memory; see `MeanTrainer`."""
        check_length(self.model, global_vector)
        totals = torch.zeros(self._size, dtype=torch.float64)
        weights = {client: weight(self.data.partition.num_examples(client)) for client in clients}
        seen: dict[int, Update] = {}
        # Clients of about equal size together, so that little is computed on rows of zeros.
        for group in self._groups(sorted(clients, key=lambda client: (self.data.num_steps(client), client))):
            trained, updates, norms = self._trained(group, round_number, global_vector)
            trained.add_to(totals, torch.tensor([weights[client] for client in group], dtype=torch.float64))
            for client, update, norm in zip(group, updates, norms, strict=True):
                seen[client] = update.with_norm(norm, least_shown)
        mean = totals.div_(sum(weights.values())).to(torch.float32).numpy()
        return of_chunk([seen[client] for client in clients]).with_arrays({PARAMETERS: mean})

    def _trained(
        self, group: Sequence[int], round_number: int, global_vector: FloatArray
    ) -> tuple[TrainedGroup, list[Update], list[float]]:
        """Train a group; returns it with the clients' updates, which have no arrays, and the norms of these."""
        rate = learning_rate(self.schedule, self.data.settings, round_number)
        batches = GroupBatches(self.data, group, round_number, rate)
        trained = self.train_group(batches, global_vector)
        updates, norms = [], trained.norms()
        for place, (client, norm, loss) in enumerate(zip(group, norms, trained.losses(), strict=True)):
            # A change whose square is no float32 has left everything that can be learned with.
            if not isfinite(norm + loss):
                raise Diverged(round_number, client)
            updates.append(
                Update(
                    base_round=round_number,
                    client=client,
                    num_examples=batches.sizes[place],
                    metrics={TRAIN_LOSS: loss / batches.passes[place]},
                )
            )
        return trained, updates, norms

    def _groups(self, clients: Sequence[int]) -> Iterator[list[int]]:
        """Neighbours in `clients`, as many as `group_bytes` hold of the largest of them."""
        group: list[int] = []
        largest = 0
        for client in clients:
            largest = max(largest, self.client_bytes(self.data.partition.num_examples(client)))
            if group and largest * (len(group) + 1) > self._group_bytes:
                yield group
                group, largest = [], self.client_bytes(self.data.partition.num_examples(client))
            group.append(client)
        if group:
            yield group


class GroupBatches:
    """The examples of a group of K clients, of which the largest has n, and the batches of one round.

    Attributes:
        clients: the group.
        sizes: how many examples each client has.
        passes: how many examples the steps of each client use, counted as often as they are used.
        x: features, float32 [K, n + 1, *shape]; the last row is of zeros.
        labels: int64 [K, n + 1].
        steps: of each step the rows, int64 [K, b], and -learning_rate / (size of the client's batch), float32 [K, b];
            0 for a row that fills up.
    """

    def __init__(self, data: ClientData, clients: Sequence[int], round_number: int, rate: float) -> None:
        """`rate` is the learning rate of the round."""
        self.clients = clients
        self.sizes = [data.partition.num_examples(client) for client in clients]
        most, count = max(self.sizes), len(clients)
        self.x = torch.zeros(count, most + 1, *data.train.feature_shape)
        self.labels = torch.zeros(count, most + 1, dtype=torch.int64)
        for place, client in enumerate(clients):
            features, known = data.examples(client)
            self.x[place, : len(features)] = torch.from_numpy(features)
            self.labels[place, : len(known)] = torch.from_numpy(known)
        batch_size = data.settings.local_batch_size
        orders = [data.epochs(round_number, client) for client in clients]
        num_steps = max(map(data.num_steps, clients))
        rows = np.full((num_steps, count, min(batch_size, most)), most, np.int64)
        scales = np.zeros(rows.shape, np.float32)
        for place, epochs in enumerate(orders):
            step = 0
            for examples in epochs:
                for start in range(0, len(examples), batch_size):
                    batch = examples[start : start + batch_size]
                    rows[step, place, : len(batch)] = batch
                    scales[step, place, : len(batch)] = -rate / len(batch)
                    step += 1
        self.passes = [sum(map(len, epochs)) for epochs in orders]
        self.steps = list(zip(torch.from_numpy(rows), torch.from_numpy(scales), strict=True))


def squares_moved(trained: Tensor, received: Tensor, at_once: int = 1 << 17) -> Tensor:
    """The sum of squares by which each client has moved a tensor, float64 [K].

    Args:
        trained: [K, *shape].
        received: [*shape].
        at_once: the numbers that are compared together; they stay in a processor's cache.
    """
    squares = torch.empty(len(trained), dtype=torch.float64, device=trained.device)
    clients = max(1, at_once // max(1, received.numel()))
    for moved, found in zip(torch.split(trained, clients), torch.split(squares, clients), strict=True):
        torch.sum((moved - received).square_().flatten(1), 1, dtype=torch.float64, out=found)
    return squares
