"""Training one client after another, and what is sent for a chunk of clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import FloatArray
from fedsim.learning.networks import Prepares, build_model, check_training, load_vector, share_vector
from fedsim.learning.randomness import generator
from fedsim.learning.strategies import ClientRound, Parts, Strategy, Uplink
from fedsim.learning.transforms import Pipeline, Stage
from fedsim.messages import ModelSpec
from fedsim.update import PARAMETERS, TRAIN_LOSS, Arrays, Update, mean_metrics


class ClientStates(Protocol):
    """What the clients of a node keep from round to round, for one chunk of a round."""

    def read(self, client: int) -> Arrays:
        """A client's state after its newest round before this one: float32 [P] each, zeros if there is none."""

    def write(self, client: int, state: Arrays) -> None:
        """Keep a client's state after this round."""


def no_state(_: int) -> Arrays:
    """The state of clients that keep none."""
    return {}


def make_deterministic(threads: int) -> None:
    """Set torch up, for this process, so that equal work gives equal bytes.

    On CUDA the environment must also hold CUBLAS_WORKSPACE_CONFIG=:4096:8 before the first kernel runs, and
    TORCHINDUCTOR_DETERMINISTIC=1 for a model that compiles itself.
    """
    torch.set_num_threads(threads)
    # As `use_deterministic_algorithms` does, but without torch's compiler, which takes most of a second to import.
    torch.set_deterministic_debug_mode("error")
    # Deterministic mode would also fill every fresh tensor; nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


class SequentialTrainer:
    """Trains one client after another; a last short batch is kept."""

    def __init__(self, data: ClientData, model_spec: ModelSpec, components: Components, device: str) -> None:
        self.data = data
        self.settings = data.settings
        self.strategy = components.strategy
        self.objective = components.objective
        self.optimizer = components.optimizer
        self.device = torch.device(device)
        self.cuda = [self.device] if self.device.type == "cuda" else []
        self.model = build_model(model_spec, components.model).to(self.device).train()
        check_training(self.model, model_spec, self.device)
        self.flat = share_vector(self.model)
        self.parameters = list(self.model.parameters())
        # The same memory, unknown to autograd: the optimizer updates these.
        self.values = [parameter.detach() for parameter in self.parameters]
        self.prepare = self.model.prepare if isinstance(self.model, Prepares) else None

    def train(
        self,
        clients: Sequence[int],
        round_number: int,
        global_vector: FloatArray,
        *,
        downlink: Arrays = MappingProxyType({}),
        state_of: Callable[[int], Arrays] = no_state,
    ) -> Iterator[Update]:
        """Yield the clients' updates in the order of `clients`; see `ClientTrainer`."""
        load_vector(self.model, global_vector)
        start = self.flat.clone()
        received = self._parts(start)
        down = self._named_parts(downlink)
        for client in clients:
            self.flat.copy_(start)
            part = ClientRound(
                received=down,
                state=self._named_parts(state_of(client)),
                num_steps=self.data.num_steps(client),
                learning_rate=self.settings.local_learning_rate,
            )
            with torch.random.fork_rng(devices=self.cuda):
                self._seed_torch(round_number, client)
                loss = self._train_client(client, round_number, received, part)
            further, state = (_flat(given) for given in self.strategy.finish_client(self.values, received, part))
            arrays = {PARAMETERS: self.flat.cpu().numpy().copy(), **further}
            if not isfinite(loss) or not all(np.isfinite(array).all() for array in (*arrays.values(), *state.values())):
                raise Diverged(round_number, client)
            update = Update(
                base_round=round_number,
                client=client,
                num_examples=self.data.partition.num_examples(client),
                metrics={TRAIN_LOSS: loss},
            )
            yield update.with_arrays(arrays).with_client_state(state)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """A vector as long as the model, as views of one tensor for each parameter."""
        parts = torch.split(vector, [parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def _named_parts(self, arrays: Arrays) -> dict[str, Parts]:
        # A copy, because an array may be a file that is mapped read-only.
        return {name: self._parts(torch.from_numpy(np.array(array)).to(self.device)) for name, array in arrays.items()}

    def _seed_torch(self, round_number: int, client: int) -> None:
        """Give torch's own stream, from which a lab's model may drop out units or draw noise, to this client."""
        seed = int(generator(self.settings.seed, "model", round_number, client).integers(2**63))
        # Not torch.manual_seed: it would also note the seed for devices that are not there, again and again.
        torch.default_generator.manual_seed(seed)
        for device in self.cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)

    def _train_client(self, client: int, round_number: int, received: Parts, part: ClientRound) -> float:
        """Train the model in place; returns the mean loss over the examples of all epochs."""
        settings = self.settings
        features, labels = (torch.from_numpy(array).to(self.device) for array in self.data.examples(client))
        order = torch.from_numpy(self.data.batch_order(round_number, client)).to(self.device)
        augment = generator(settings.seed, "augment", round_number, client)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        step = self.optimizer.start(self.values, settings.local_learning_rate)
        for epoch in order:
            # One gather for each epoch, then batches are views.
            batches = torch.split(features[epoch], settings.local_batch_size)
            targets = torch.split(labels[epoch], settings.local_batch_size)
            for x, y in zip(batches, targets, strict=True):
                inputs = self.prepare(x, augment) if self.prepare else x
                loss = self.objective.loss(self.model(inputs), y)
                gradients = torch.autograd.grad(loss, self.parameters)
                self.strategy.adjust_gradients(gradients, self.values, received, part)
                step(gradients)
                total.add_(loss.detach(), alpha=len(y))
        return float(total) / order.numel()


def _flat(arrays: Mapping[str, Parts]) -> dict[str, FloatArray]:
    """Named parts as vectors, float32 [P]."""
    return {name: torch.cat([part.reshape(-1) for part in parts]).cpu().numpy() for name, parts in arrays.items()}


def mean_update(updates: Iterable[Update], strategy: Strategy) -> Update:
    """A chunk's weighted mean, summed in float64 in the order given, holding one update at a time.

    Raises:
        ValueError: there are no updates.
    """
    totals: dict[str, NDArray[np.float64]] = {}
    scratch: dict[str, NDArray[np.float64]] = {}
    weights = 0.0
    seen: list[Update] = []
    for update in updates:
        if not seen:
            totals = {name: np.zeros(array.shape) for name, array in update.arrays.items()}
            scratch = {name: np.empty(array.shape) for name, array in update.arrays.items()}
        weight = strategy.weight(update.num_examples, 1)
        for name, array in update.arrays.items():
            totals[name] += np.multiply(array, weight, out=scratch[name], dtype=np.float64)
        weights += weight
        seen.append(update.with_arrays({}))
    if not seen:
        raise ValueError("a chunk without clients has no mean")
    return (
        seen[0]
        .model_copy(
            update={
                "client": None,
                "num_clients": len(seen),
                "num_examples": sum(update.num_examples for update in seen),
                "metrics": mean_metrics(seen),
            }
        )
        .with_arrays({name: (total / weights).astype(np.float32) for name, total in totals.items()})
    )


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

    The state of a client is written before its update is yielded; one client's is in memory at a time.
    """

    def trained() -> Iterator[Update]:
        state_of = no_state if states is None else states.read
        for update in trainer.train(clients, round_number, global_vector, downlink=downlink, state_of=state_of):
            if states is not None and update.client is not None:
                states.write(update.client, update.client_state)
            sent = update.model_copy(update={"chunk": chunk}).with_client_state({})
            yield pipeline.on_client(Stage.CLIENT, sent, global_vector)

    updates = trained()
    for update in updates if strategy.uplink == Uplink.EACH_CLIENT else [mean_update(updates, strategy)]:
        yield pipeline.on_client(Stage.UPLOAD, update, global_vector)
