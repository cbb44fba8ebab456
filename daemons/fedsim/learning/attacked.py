"""The clients of a node, some of which attack: around the trainer of any engine.

What attackers train on is changed where an engine reads a client's examples, what they send between the engine and the
pipeline of transforms. A client that does not attack is trained as in any other task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import numpy as np

from fedsim.learning.attacks import Attack, attacking_clients, context_of
from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer, Engine, no_state
from fedsim.learning.examples import FloatArray, TargetArray
from fedsim.learning.randomness import generator
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS, Arrays, Update

if TYPE_CHECKING:
    from fedsim.learning.examples import IntArray


def start_trainer(
    engine: Engine, data: ClientData, model_spec: ModelSpec, components: Components, device: str
) -> ClientTrainer:
    """Start an engine for a task; see `Engine.start`. The task's attack, if it has one, is around it."""
    attack = components.attack
    if attack is None:
        return engine.start(data, model_spec, components, device)
    attackers = attacking_clients(attack, data.settings)
    if attack.poisons:
        plain = {one.name: getattr(data, one.name) for one in fields(ClientData)}
        data = PoisonedData(**plain, attack=attack, attackers=attackers, num_classes=model_spec.num_classes)
    trainer = engine.start(data, model_spec, components, device)
    return AttackedTrainer(trainer, attack, attackers, data.settings) if attack.crafts else trainer


@dataclass(frozen=True)
class PoisonedData(ClientData):
    """A node's training examples, of which attacking clients use others."""

    attack: Attack = field(default_factory=Attack)
    attackers: frozenset[int] = frozenset()
    num_classes: int = 0

    def examples(self, client: int) -> tuple[FloatArray, TargetArray]:
        """See `ClientData.examples`; an attack that changes labels is refused where targets are no classes."""
        features, labels = super().examples(client)
        if client not in self.attackers:
            return features, labels
        rng = generator(self.settings.seed, "attack poison", client)
        return self.attack.poison(features, cast("IntArray", labels), self.num_classes, rng)


class AttackedTrainer:
    """Trains clients with another trainer, and replaces what attackers send; see `ClientTrainer`.

    It holds the updates of a chunk's attackers in memory. Their metrics and states are those of honest training.
    """

    def __init__(
        self, trainer: ClientTrainer, attack: Attack, attackers: frozenset[int], settings: TaskSettings
    ) -> None:
        self._trainer, self._attack, self._attackers, self._settings = trainer, attack, attackers, settings

    def train(
        self,
        clients: Sequence[int],
        round_number: int,
        global_vector: FloatArray,
        *,
        downlink: Arrays = MappingProxyType({}),
        state_of: Callable[[int], Arrays] = no_state,
    ) -> Iterator[Update]:
        """The attackers are trained first, so that they know what they would send; updates keep their order."""

        def trained(some: Sequence[int]) -> Iterator[Update]:
            return self._trainer.train(some, round_number, global_vector, downlink=downlink, state_of=state_of)

        here = [client for client in clients if client in self._attackers]
        honest = [update.copied() for update in trained(here)] if here else []
        sent = dict(zip(here, self._crafted(honest, here, round_number, global_vector), strict=True))
        others = trained([client for client in clients if client not in self._attackers])
        for client in clients:
            yield sent[client] if client in sent else next(others)

    def _crafted(
        self, honest: Sequence[Update], here: Sequence[int], round_number: int, received: FloatArray
    ) -> list[Update]:
        if not honest:
            return []
        differences = np.stack([np.subtract(one.arrays[PARAMETERS], received, dtype=np.float64) for one in honest])
        crafted = self._attack.craft(differences, context_of(self._attackers, self._settings, round_number, here))
        rows = np.broadcast_to(crafted, differences.shape)
        return [
            update.with_arrays({PARAMETERS: (received + row).astype(np.float32)})
            for update, row in zip(honest, rows, strict=True)
        ]
