"""What is sent for a chunk of clients: their weighted mean, or each client's update.

Besides the arrays of one update, a mean needs one float64 accumulator; everything else is computed in blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from types import MappingProxyType
from typing import Protocol, Self

import numpy as np

from fedsim.learning.aggregate import uplink_layout
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.engines import ClientTrainer, MeanTrainer, no_state
from fedsim.learning.examples import BLOCK, FloatArray
from fedsim.learning.strategies import Strategy, Uplink
from fedsim.learning.transforms import Pipeline, Stage
from fedsim.update import PARAMETERS, Arrays, Update, of_chunk


class ClientStates(Protocol):
    """What the clients of a node, or other owners with a number, keep from round to round, for one chunk of a round."""

    def read(self, client: int) -> Arrays:
        """A client's state after its newest round before this one: float32 [P] each, zeros if there is none."""

    def write(self, client: int, state: Arrays) -> None:
        """Keep a client's state after this round."""


def senders_of(chunk: ChunkPlan, strategy: Strategy) -> tuple[int, ...]:
    """Under which numbers what is sent for a chunk is known from round to round: its clients', or its slot."""
    return chunk.clients if strategy.uplink == Uplink.EACH_CLIENT else (chunk.slot,)


@dataclass(frozen=True)
class ChunkStates:
    """What is kept from round to round of a chunk.

    Attributes:
        clients: of the strategy's clients, by the client; None if they keep nothing.
        senders: of the pipeline's senders, by the client whose update is sent, or by the chunk's slot if it is a sum;
            None if they keep nothing.
    """

    clients: ClientStates | None = None
    senders: ClientStates | None = None


def training_bytes(
    num_parameters: int,
    strategy: Strategy,
    num_clients: int,
    pipeline: Pipeline,
    attackers: int = 0,
    personal: int = 0,
) -> int:
    """The memory of a worker that trains a chunk, beyond what it needs without a model; activations are not counted.

    It holds the parameters, their gradients, what the strategy sends and keeps besides, and the sum of `SUM`. The
    global model, and what else comes from a file, is mapped.

    Args:
        num_parameters: of the model.
        strategy: of the task.
        num_clients: that the node holds; a chunk of a single one needs no sum.
        pipeline: of the task: what its transforms send and keep besides.
        attackers: that the node holds, whose updates are in memory together.
        personal: the length of a client's personal vector; that of the first round and a copy to be written are in
            memory with it and its gradients.
    """
    sent = uplink_layout(strategy, num_parameters)
    encoded = pipeline.layout(sent).num_bytes if pipeline.transforms else 0
    kept = pipeline.kept_layout(sent).num_bytes
    arrays = 2 + len(strategy.uplink_arrays) - 1 + len(strategy.client_state)
    sums = len(strategy.uplink_arrays) if strategy.uplink == Uplink.SUM and num_clients > 1 else 0
    trained = num_parameters * (arrays * np.dtype(np.float32).itemsize + sums * np.dtype(np.float64).itemsize)
    crafted = attackers * num_parameters * (np.dtype(np.float32).itemsize + 2 * np.dtype(np.float64).itemsize)
    return trained + encoded + kept + crafted + 4 * personal * np.dtype(np.float32).itemsize


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


def with_figures(update: Update, received: FloatArray | None, least_shown: int | None) -> Update:
    """`Update.with_norm`, computed in blocks; `received` is None where the update holds changes."""
    trained, square = update.arrays[PARAMETERS], 0.0
    for start in range(0, trained.size, BLOCK):
        here = slice(start, start + BLOCK)
        moved = np.subtract(trained[here], 0 if received is None else received[here], dtype=np.float64)
        square += float(np.einsum("i,i->", moved, moved))
    return update.with_norm(sqrt(square), least_shown)


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
    states: ChunkStates = ChunkStates(),
    slot: int = 0,
    least_shown: int | None = None,
) -> Iterator[Update]:
    """Train a chunk and yield what is sent for it: its mean, or each client's update where the strategy needs those.

    The arrays of an update are valid until the next one is requested. What a client or a sender keeps is written before
    its update is yielded; one client's is in memory at a time. `slot` is the chunk's (`ChunkPlan`). The figures of a
    single client go with it if the client has `least_shown` examples; None: those of none.
    """

    def trained() -> Iterator[Update]:
        state_of = no_state if states.clients is None else states.clients.read
        for update in trainer.train(clients, round_number, global_vector, downlink=downlink, state_of=state_of):
            if states.clients is not None and update.client is not None:
                states.clients.write(update.client, update.client_state)
            measured = with_figures(update, None if strategy.buffering else global_vector, least_shown)
            sent = measured.model_copy(update={"chunk": chunk}).with_client_state({})
            yield pipeline.on_client(Stage.CLIENT, sent, global_vector)

    keeps = bool(strategy.client_state) or states.clients is not None
    sees_clients = keeps or any(part.stage == Stage.CLIENT for part in pipeline.transforms)
    if strategy.uplink == Uplink.EACH_CLIENT:
        uploads = trained()
    elif isinstance(trainer, MeanTrainer) and strategy.trains_plainly and not sees_clients:
        weight = partial(strategy.weight, num_clients=1)
        mean = trainer.train_mean(clients, round_number, global_vector, weight, least_shown)
        uploads = iter([mean.model_copy(update={"chunk": chunk})])
    elif len(clients) == 1:  # the mean of one client's update is that update, to the byte
        uploads = (of_chunk([update]).with_arrays(update.arrays) for update in trained())
    else:
        uploads = iter([mean_update(trained(), strategy)])
    for upload in uploads:
        sender = slot if upload.client is None else upload.client
        kept = {} if states.senders is None else states.senders.read(sender)
        sent = pipeline.on_client(Stage.UPLOAD, upload, global_vector, kept)
        if states.senders is not None:
            states.senders.write(sender, sent.client_state)
        yield sent.with_client_state({})


class ChunkTrainer:
    """Trains the chunks of one task with the trainer of their node."""

    def __init__(self, trainers: Sequence[ClientTrainer], strategy: Strategy, pipeline: Pipeline) -> None:
        """`trainers` are those of the nodes, or one for all."""
        self._trainers, self._strategy, self._pipeline = trainers, strategy, pipeline

    def train(
        self, chunk: ChunkPlan, round_number: int, vector: FloatArray, downlink: Arrays, states: ChunkStates
    ) -> Iterator[Update]:
        """See `train_chunk`."""
        return train_chunk(
            self._trainers[chunk.node if len(self._trainers) > 1 else 0],
            self._strategy,
            chunk.id,
            chunk.clients,
            round_number,
            vector,
            self._pipeline,
            downlink=downlink,
            states=states,
            slot=chunk.slot,
            least_shown=1,
        )


class InProcessTrainers:
    """Trains chunks one after another in this process; a context manager, like `ForkedTrainers`."""

    def __init__(self, trainers: Sequence[ClientTrainer], strategy: Strategy, pipeline: Pipeline) -> None:
        self._trainer = ChunkTrainer(trainers, strategy, pipeline)

    def __enter__(self) -> Self:
        """There is nothing to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to end."""

    def train(
        self,
        chunks: Sequence[ChunkPlan],
        round_number: int,
        vector: FloatArray,
        downlink: Arrays,
        states: ChunkStates,
    ) -> list[Update]:
        """See `ForkedTrainers`."""
        return [
            update.copied()
            for chunk in chunks
            for update in self._trainer.train(chunk, round_number, vector, downlink, states)
        ]
