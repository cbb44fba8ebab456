"""Engines: how a node trains its clients. One class in one file each, whose module does not import torch.

An engine is given some of the cohort and the global model, and yields their updates. What all engines share, so that
one can take another's place, is here: a client's examples, and the order of its batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from fedsim.learning.components import Components
from fedsim.learning.examples import Examples, FloatArray, IntArray, TargetArray
from fedsim.learning.partitions import Partition
from fedsim.learning.randomness import generator
from fedsim.messages import ModelSpec
from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings
from fedsim.update import Arrays, Update


@dataclass(frozen=True)
class ClientData:
    """A node's training examples, client by client, in the order in which each round uses them.

    With blocks of more than one example a batch has whole blocks only.
    """

    settings: TaskSettings
    train: Examples
    partition: Partition
    block_size: int = 1

    def examples(self, client: int) -> tuple[FloatArray, TargetArray]:
        """A client's features (float32 [k, *shape]) and targets (int64 [k], see `Examples`)."""
        indices = self.partition.indices(client)
        return self.partition.change(client, self.train.take(indices)), self.train.labels[indices]

    def batch_order(self, round_number: int, client: int) -> IntArray:
        """The order of a client's examples in each epoch that begins in a round, int64 [epochs, k]."""
        rng = generator(self.settings.seed, "batches", round_number, client)
        count = self.partition.num_examples(client) // self.block_size
        epochs = -(-self.num_steps(client) // self._steps_of_epoch(client))
        order = np.stack([rng.permutation(count) for _ in range(epochs)])
        whole = order[:, :, None] * self.block_size + np.arange(self.block_size)
        return whole.reshape(epochs, -1)

    def epochs(self, round_number: int, client: int) -> list[IntArray]:
        """The examples that a client uses in each epoch of a round, int64 [≤ k]; cut them into batches from the left.

        Only the last epoch can be shorter than the others: `max_steps` ends it after that many batches of the round.
        """
        order = self.batch_order(round_number, client)
        last = self.num_steps(client) - (len(order) - 1) * self._steps_of_epoch(client)
        return [*order[:-1], order[-1, : last * self.settings.local_batch_size]]

    def num_steps(self, client: int) -> int:
        """How many batches a client uses in a round."""
        return self.settings.num_steps(self.partition.num_examples(client))

    def _steps_of_epoch(self, client: int) -> int:
        return -(-self.partition.num_examples(client) // self.settings.local_batch_size)


def no_state(_: int) -> Arrays:
    """The state of clients that keep none."""
    return {}


class ClientTrainer(Protocol):
    """Trains clients of one task on one node. Where it runs them, and how many at once, is its own decision."""

    def train(
        self,
        clients: Sequence[int],
        round_number: int,
        global_vector: FloatArray,
        *,
        downlink: Arrays = ...,
        state_of: Callable[[int], Arrays] = ...,
    ) -> Iterator[Update]:
        """Yield the clients' updates in the order of `clients`, each with its arrays and its client's new state.

        The arrays of an update are valid until the next one is requested, so that nothing of a model's size has to be
        copied.

        Args:
            clients: some of those that this node holds.
            round_number: counted from 1.
            global_vector: float32 [P]; is only read.
            downlink: the strategy's `downlink_arrays`, float32 [P] each; are only read.
            state_of: returns a client's `client_state`, float32 [P] each; are only read.

        Raises:
            Diverged: a client's parameters or loss are no longer finite.
        """


@runtime_checkable
class MeanTrainer(Protocol):
    """A trainer that can also compute a chunk's mean without the update of each client."""

    def train_mean(
        self,
        clients: Sequence[int],
        round_number: int,
        global_vector: FloatArray,
        weight: Callable[[int], float],
        least_shown: int | None = None,
    ) -> Update:
        """The weighted mean of the clients' updates, for strategies whose clients only train.

        Args:
            clients: as of `ClientTrainer.train`.
            round_number: counted from 1.
            global_vector: float32 [P]; is only read.
            weight: of a client with this many examples.
            least_shown: see `Update.with_norm`.

        Raises:
            Diverged: a client's parameters or loss are no longer finite.
        """


class Engine(Plugin):
    """The base of all engines.

    Attributes:
        tolerance: the largest difference between a parameter that this engine trained and the same one of the engine
            `sequential`, relative to the largest parameter of the update; 0: the same bytes.
        measured: whether a node that finds out itself what is quickest tries it; others are used only where the node's
            owner has chosen them.
        private_options: names of options that only `client.yml` sets, and that no message holds.
    """

    tolerance: ClassVar[float] = 0.0
    measured: ClassVar[bool] = True
    private_options: ClassVar[frozenset[str]] = frozenset()

    def start(self, data: ClientData, model_spec: ModelSpec, components: Components, device: str) -> ClientTrainer:
        """Prepare the training of one task on one node.

        Args:
            data: the node's training examples.
            model_spec: the task's model.
            components: the task's plug-ins.
            device: a torch device.

        Raises:
            BadInput: the model cannot be trained.
        """
        raise NotImplementedError
