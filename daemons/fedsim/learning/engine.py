"""Training one client after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from types import MappingProxyType

import torch

from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, no_state
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import FloatArray, is_finite
from fedsim.learning.networks import (
    Prepares,
    as_tensor,
    build_model,
    check_length,
    check_training,
    parts_of,
    share_vector,
)
from fedsim.learning.randomness import generator
from fedsim.learning.schedules import learning_rate
from fedsim.learning.strategies import ClientRound, Parts
from fedsim.messages import ModelSpec
from fedsim.update import EFFECTIVE_STEPS, PARAMETERS, TRAIN_LOSS, Arrays, Update


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
        self.schedule = components.schedule
        self.device = torch.device(device)
        self.cuda = [self.device] if self.device.type == "cuda" else []
        self.model = build_model(model_spec, components.model).to(self.device).train()
        check_training(self.model, model_spec, self.device, self.objective)
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
        check_length(self.model, global_vector)
        start = as_tensor(global_vector).to(self.device)
        received = parts_of(self.model, start)
        down = self._named_parts(downlink)
        rate = learning_rate(self.schedule, self.settings, round_number)
        for client in clients:
            self.flat.copy_(start)
            part = ClientRound(
                received=down,
                state=self._named_parts(state_of(client)),
                num_steps=self.data.num_steps(client),
                learning_rate=rate,
                effective_steps=self.optimizer.effective_steps(self.data.num_steps(client)),
            )
            with torch.random.fork_rng(devices=self.cuda):
                self._seed_torch(round_number, client)
                loss = self._train_client(client, round_number, received, part)
            further, state = (_flat(given) for given in self.strategy.finish_client(self.values, received, part))
            arrays = {PARAMETERS: self.flat.cpu().numpy(), **further}
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

    def _further_metrics(self, part: ClientRound) -> dict[str, float]:
        """Those that the strategy declares."""
        found = {EFFECTIVE_STEPS: part.effective_steps}
        return {name: value for name in self.strategy.uplink_metrics if (value := found.get(name)) is not None}

    def _named_parts(self, arrays: Arrays) -> dict[str, Parts]:
        return {name: parts_of(self.model, as_tensor(array).to(self.device)) for name, array in arrays.items()}

    def _seed_torch(self, round_number: int, client: int) -> None:
        """Give torch's own stream, from which a lab's model may drop out units or draw noise, to this client."""
        seed = int(generator(self.settings.seed, "model", round_number, client).integers(2**63))
        # Not torch.manual_seed: it would also note the seed for devices that are not there, again and again.
        torch.default_generator.manual_seed(seed)
        for device in self.cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)

    def _train_client(self, client: int, round_number: int, received: Parts, part: ClientRound) -> float:
        """Train the model in place; returns the mean loss over the examples of all steps."""
        settings = self.settings
        features, labels = (torch.from_numpy(array).to(self.device) for array in self.data.examples(client))
        order = [torch.from_numpy(epoch).to(self.device) for epoch in self.data.epochs(round_number, client)]
        augment = generator(settings.seed, "augment", round_number, client)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        step = self.optimizer.start(self.values, part.learning_rate)
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
                del gradients  # before the next ones are computed
                total.add_(loss.detach(), alpha=len(y))
        return float(total) / sum(map(len, order))


def _flat(arrays: Mapping[str, Parts]) -> dict[str, FloatArray]:
    """Named parts as vectors, float32 [P]."""
    return {name: torch.cat([part.reshape(-1) for part in parts]).cpu().numpy() for name, parts in arrays.items()}
