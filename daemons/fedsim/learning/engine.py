"""Training one client after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import BadInput
from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, no_state
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import FloatArray, is_finite
from fedsim.learning.networks import (
    Prepares,
    as_tensor,
    check_length,
    check_training,
    task_network,
)
from fedsim.learning.optimizers import Step
from fedsim.learning.randomness import generator
from fedsim.learning.schedules import learning_rate
from fedsim.learning.strategies import ClientRound, Parts, TrainedPart
from fedsim.learning.trained_network import TrainedNetwork
from fedsim.messages import ModelSpec
from fedsim.update import EFFECTIVE_STEPS, PARAMETERS, PERSONAL, PERSONAL_ROUNDS, TRAIN_LOSS, Arrays, Update


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


Adjust = Callable[[Parts, Parts, Parts, ClientRound], None]
"""`Strategy.adjust_gradients`, or that of a client's own model."""


class SequentialTrainer:
    """Trains one client after another; a last short batch is kept."""

    def __init__(self, data: ClientData, model_spec: ModelSpec, components: Components, device: str) -> None:
        self.data = data
        self.settings = data.settings
        self.strategy = components.strategy
        self.objective = components.objective
        self.optimizer = components.optimizer
        self.schedule = components.schedule
        self.device = torch.device(device)
        self.cuda = [self.device] if self.device.type == "cuda" else []
        network = task_network(model_spec, data.settings, components.strategy, components.model)
        network.model.to(self.device)
        check_training(network.model, model_spec, self.device, self.objective)
        self.network = TrainedNetwork(network, self.device)
        model = network.model
        self.prepare = model.prepare if isinstance(model, Prepares) else None

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
        network = self.network
        check_length(network.model, global_vector, network.roles)
        start = as_tensor(global_vector).to(self.device)
        received = self._shared(start)
        down = self._named_parts(downlink)
        rate = learning_rate(self.schedule, self.settings, round_number)
        for client in clients:
            kept = dict(state_of(client))
            own = _own_of(kept, self.device)
            network.begin(start, None if network.roles.whole else own)
            part = ClientRound(
                received=down,
                state=self._named_parts({name: kept[name] for name in self.strategy.client_state}),
                num_steps=self.data.num_steps(client),
                learning_rate=rate,
                effective_steps=self.optimizer.effective_steps(self.data.num_steps(client)),
            )
            with torch.random.fork_rng(devices=self.cuda):
                self._seed_torch("model", round_number, client)
                loss = self._train_client(client, round_number, received, part, self.strategy.adjust_gradients)
            network.finish()
            values = network.values[: network.num_shared]
            further, state = self._as_vectors(*self.strategy.finish_client(values, received, part))
            arrays = {PARAMETERS: network.flat.cpu().numpy(), **further}
            if network.roles.kept_size:
                kept_vector = network.own
                if network.roles.whole:  # trained in the same memory as what is sent
                    arrays = {name: array.copy() for name, array in arrays.items()}
                    before = start if own is None else own
                    kept_vector = self._train_own_model(client, round_number, before, received, part)
                rounds = kept.get(PERSONAL_ROUNDS, np.zeros(1, np.float32)) + np.float32(1)
                state |= {PERSONAL: kept_vector.cpu().numpy(), PERSONAL_ROUNDS: rounds}
            if not isfinite(loss) or not all(map(is_finite, (*arrays.values(), *state.values()))):
                raise Diverged(round_number, client)
            update = Update(
                base_round=round_number,
                client=client,
                num_examples=self.data.partition.num_examples(client),
                metrics={
                    TRAIN_LOSS: loss,
                    **self._further_metrics(part),
                },
            )
            yield update.with_arrays(arrays).with_client_state(state)

    def _train_own_model(
        self, client: int, round_number: int, start: Tensor, received: Parts, part: ClientRound
    ) -> Tensor:
        """Train a client's own model, which it begins with in `start`; returns its flat vector."""
        self.network.begin(start, None)
        with torch.random.fork_rng(devices=self.cuda):
            self._seed_torch("personal model", round_number, client)
            self._train_client(client, round_number, received, part, self.strategy.adjust_personal_gradients)
        self.network.finish()
        return self.network.flat

    def _further_metrics(self, part: ClientRound) -> dict[str, float]:
        """Those that the strategy declares."""
        found = {EFFECTIVE_STEPS: part.effective_steps}
        return {name: value for name in self.strategy.uplink_metrics if (value := found.get(name)) is not None}

    def _shared(self, vector: Tensor) -> Parts:
        """The shared parameters in a vector: strategies see no statistics."""
        return self.network.shared_parts(vector)[: self.network.num_shared]

    def _named_parts(self, arrays: Arrays) -> dict[str, Parts]:
        return {name: self._shared(as_tensor(array).to(self.device)) for name, array in arrays.items()}

    def _as_vectors(
        self, sent: Mapping[str, Parts], kept: Mapping[str, Parts]
    ) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """What a client sends and keeps besides its parameters as vectors, float32 [P]."""
        network = self.network
        likes = {PARAMETERS: network.flat}
        arrays = {name: network.with_statistics(list(parts), likes.get(name)) for name, parts in sent.items()}
        return arrays, {name: network.with_statistics(list(parts)) for name, parts in kept.items()}

    def _seed_torch(self, purpose: str, round_number: int, client: int) -> None:
        """Give torch's own stream, from which a lab's model may drop out units or draw noise, to this client."""
        seed = int(generator(self.settings.seed, purpose, round_number, client).integers(2**63))
        # Not torch.manual_seed: it would also note the seed for devices that are not there, again and again.
        torch.default_generator.manual_seed(seed)
        for device in self.cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)

    def _train_client(
        self, client: int, round_number: int, received: Parts, part: ClientRound, adjust: Adjust
    ) -> float:
        """Train the model in place; returns the mean loss over the examples of all steps."""
        settings = self.settings
        features, labels = (torch.from_numpy(array).to(self.device) for array in self.data.examples(client))
        order = [torch.from_numpy(epoch).to(self.device) for epoch in self.data.epochs(round_number, client)]
        augment = generator(settings.seed, "augment", round_number, client)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        network, shared = self.network, self.network.num_shared
        steps: dict[TrainedPart, Step] = {}
        for number, epoch in enumerate(order):
            group = self.strategy.trains(number, len(order))
            here = {
                TrainedPart.ALL: slice(None),
                TrainedPart.SHARED: slice(shared),
                TrainedPart.PERSONAL: slice(shared, None),
            }[group]
            parameters, values = network.parameters[here], network.values[here]
            if group not in steps:
                steps[group] = self.optimizer.start(values, part.learning_rate)
            # One gather for each epoch, then batches are views.
            batches = torch.split(features[epoch], settings.local_batch_size)
            targets = torch.split(labels[epoch], settings.local_batch_size)
            for x, y in zip(batches, targets, strict=True):
                inputs = self.prepare(x, augment) if self.prepare else x
                loss = self.objective.loss(self._outputs(inputs, client), y)
                gradients = [gradient.float() for gradient in torch.autograd.grad(loss, parameters)]
                if group != TrainedPart.PERSONAL:
                    adjust(gradients[:shared], values[:shared], received, part)
                steps[group](gradients)
                network.round_parameters()
                del gradients  # before the next ones are computed
                total.add_(loss.detach(), alpha=len(y))
        return float(total) / sum(map(len, order))

    def _outputs(self, inputs: Tensor, client: int) -> Tensor:
        try:
            return self.network(inputs)
        except ValueError as error:
            if len(inputs) > 1:
                raise
            raise BadInput(
                f"the model cannot be trained with the single example of a last batch of client {client} ({error}): "
                "choose a local_batch_size that leaves more, or a model without batch normalisation"
            ) from error


def _own_of(kept: Arrays, device: torch.device) -> Tensor | None:
    """A client's personal vector; None before its first round."""
    if PERSONAL not in kept or not kept[PERSONAL_ROUNDS][0]:
        return None
    return as_tensor(kept[PERSONAL]).to(device)
