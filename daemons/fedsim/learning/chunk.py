"""What is sent for a chunk of clients: their weighted mean, or each client's update.

Besides the arrays of one update, a mean needs one float64 accumulator; everything else is computed in blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np

from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.engines import ClientTrainer, MeanTrainer, no_state
from fedsim.learning.examples import BLOCK, FloatArray
from fedsim.learning.strategies import Strategy, Uplink
from fedsim.learning.transforms import Pipeline, Stage
from fedsim.update import Arrays, Update, of_chunk


class ClientStates(Protocol):
    """What the clients of a node keep from round to round, for one chunk of a round."""

    def read(self, client: int) -> Arrays:
        """A client's state after its newest round before this one: float32 [P] each, zeros if there is none."""

    def write(self, client: int, state: Arrays) -> None:
        """Keep a client's state after this round."""


def training_bytes(num_parameters: int, strategy: Strategy, num_clients: int) -> int:
    """The memory of a worker that trains a chunk, beyond what it needs without a model; activations are not counted.

    It holds the parameters, their gradients, what the strategy sends and keeps besides, and the sum of `SUM`. The
    global model, and what else comes from a file, is mapped.

    Args:
        num_parameters: of the model.
        strategy: of the task.
        num_clients: that the node holds; a chunk of a single one needs no sum.
    """
    arrays = 2 + len(strategy.uplink_arrays) - 1 + len(strategy.client_state)
    sums = len(strategy.uplink_arrays) if strategy.uplink == Uplink.SUM and num_clients > 1 else 0
    return num_parameters * (arrays * np.dtype(np.float32).itemsize + sums * np.dtype(np.float64).itemsize)


class MeanArray:
    """The weighted mean of arrays of one shape, summed in float64 in the order in which they are added."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._total = np.zeros(shape).reshape(-1)
        self._scratch = np.empty(min(BLOCK, self._total.size))

    def add(self, array: FloatArray, weight: float) -> None:
        """Add a float32 array, of which nothing is kept."""
        flat = array.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            part = flat[start : start + BLOCK]
            weighted = np.multiply(part, weight, out=self._scratch[: part.size], dtype=np.float64)
            self._total[start : start + BLOCK] += weighted

    def divide(self, weights: float) -> FloatArray:
        """The mean as float32, written over the sum: nothing can be added afterwards."""
        # Its first half: a block is read before anything is written there, as a float32 is shorter than a float64.
        mean = self._total.view(np.float32)[: self._total.size]
        for start in range(0, self._total.size, BLOCK):
            mean[start : start + BLOCK] = self._total[start : start + BLOCK] / weights
        return mean.reshape(self._shape)


def mean_update(updates: Iterable[Update], strategy: Strategy) -> Update:
    """A chunk's weighted mean, summed in float64 in the order given, holding one update at a time.

    Raises:
        ValueError: there are no updates.
    """
    means: dict[str, MeanArray] = {}
    weights = 0.0
    seen: list[Update] = []
    for update in updates:
        if not seen:
            means = {name: MeanArray(array.shape) for name, array in update.arrays.items()}
        weight = strategy.weight(update.num_examples, 1)
        for name, array in update.arrays.items():
            means[name].add(array, weight)
        weights += weight
        seen.append(update.with_arrays({}))
    if not seen:
        raise ValueError("a chunk without clients has no mean")
    return of_chunk(seen).with_arrays({name: mean.divide(weights) for name, mean in means.items()})


def train_chunk(
    trainer: ClientTrainer,
    strategy: Strategy,
    chunk: int,
    clients: Sequence[int],
    round_number: int,
    global_vector: FloatArray,
    pipeline: Pipeline,
    *,
    downlink: Arrays = MappingProxyType({}),
    states: ClientStates | None = None,
) -> Iterator[Update]:
    """Train a chunk and yield what is sent for it: its mean, or each client's update where the strategy needs those.

    The arrays of an update are valid until the next one is requested. The state of a client is written before its
    update is yielded; one client's is in memory at a time.
    """

    def trained() -> Iterator[Update]:
        state_of = no_state if states is None else states.read
        for update in trainer.train(clients, round_number, global_vector, downlink=downlink, state_of=state_of):
            if states is not None and update.client is not None:
                states.write(update.client, update.client_state)
            sent = update.model_copy(update={"chunk": chunk}).with_client_state({})
            yield pipeline.on_client(Stage.CLIENT, sent, global_vector)

    sees_clients = bool(strategy.client_state) or any(part.stage == Stage.CLIENT for part in pipeline.transforms)
    if strategy.uplink == Uplink.EACH_CLIENT:
        uploads = trained()
    elif isinstance(trainer, MeanTrainer) and strategy.trains_plainly and not sees_clients:
        mean = trainer.train_mean(clients, round_number, global_vector, lambda count: strategy.weight(count, 1))
        uploads = iter([mean.model_copy(update={"chunk": chunk})])
    elif len(clients) == 1:  # the mean of one client's update is that update, to the byte
        uploads = (of_chunk([update]).with_arrays(update.arrays) for update in trained())
    else:
        uploads = iter([mean_update(trained(), strategy)])
    for upload in uploads:
        yield pipeline.on_client(Stage.UPLOAD, upload, global_vector)


class ChunkTrainer:
    """Trains the chunks of one task with the trainer of their node."""

    def __init__(self, trainers: Sequence[ClientTrainer], strategy: Strategy, pipeline: Pipeline) -> None:
        """`trainers` are those of the nodes, or one for all."""
        self._trainers, self._strategy, self._pipeline = trainers, strategy, pipeline

    def train(
        self, chunk: ChunkPlan, round_number: int, vector: FloatArray, downlink: Arrays, states: ClientStates | None
    ) -> Iterator[Update]:
        """See `train_chunk`; `states` are not used by a strategy whose clients keep none."""
        return train_chunk(
            self._trainers[chunk.node if len(self._trainers) > 1 else 0],
            self._strategy,
            chunk.id,
            chunk.clients,
            round_number,
            vector,
            self._pipeline,
            downlink=downlink,
            states=states if self._strategy.client_state else None,
        )
