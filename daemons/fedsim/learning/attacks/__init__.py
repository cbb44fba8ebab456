"""Attacks for research: what clients do that want to harm a task. One class in one file each.

An attack changes what an attacking client trains on (`poison`), what it sends (`craft`), or both. Attackers know what
they would honestly have sent themselves, and nothing of other clients: `craft` gets the differences that the attacking
clients of one chunk have trained, which are on one node. This is what the papers call partial knowledge. An attack that
needs means or deviations estimates them from these; so `simulate` and the platform give the same bytes for the same
chunks, and an attack is strongest where all attackers are in one chunk.

A node takes part in an attack only where its owner allows it (`attacks` in client.yml); no attack touches guarded data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.data_schema import some
from fedsim.errors import BadInput
from fedsim.learning.examples import FloatArray, IntArray
from fedsim.learning.partitions import Partitioner
from fedsim.learning.randomness import generator
from fedsim.learning.strategies import Strategy
from fedsim.plugins import Plugin, PluginOptions, gettext_noop
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS

Differences = NDArray[np.float64]
"""What clients have trained minus what they received, float64 [attackers, P]."""
Client = Annotated[int, Field(ge=0, le=1_000_000)]
MAX_NAMED = 20


@dataclass(frozen=True)
class AttackContext:
    """What the attackers of one chunk know besides their updates.

    Attributes:
        seed: the task's.
        round: counted from 1.
        clients: the attacking clients of the chunk, ascending: those of the rows.
        n: clients in each round.
        m: attackers that a round has on average, at least 1.
    """

    seed: int
    round: int
    clients: tuple[int, ...]
    n: int
    m: int

    def generator(self, purpose: str, client: int) -> np.random.Generator:
        """The random stream of an attacking client in this round."""
        return generator(self.seed, f"attack {purpose}", self.round, client)


class AttackOptions(PluginOptions):
    """Who attacks."""

    attackers: int = Field(
        1,
        ge=1,
        le=1_000_000,
        title=gettext_noop("Attackers"),
        description=gettext_noop("m, how many of the clients attack; the seed decides which."),
    )
    clients: Annotated[list[Client], Field(max_length=1000)] = Field(
        [],
        title=gettext_noop("Attacking clients"),
        description=gettext_noop("These clients attack, whatever the number of attackers; empty: drawn by the seed."),
    )


class Attack(Plugin):
    """The base of all attacks; as it is, it does nothing.

    Attributes:
        least_attackers: of fewer attackers it has nothing to estimate from.
        objectives: names of the objectives whose targets it understands; empty: any.
    """

    Options = AttackOptions
    least_attackers: ClassVar[int] = 1
    objectives: ClassVar[frozenset[str]] = frozenset()
    options: AttackOptions

    @property
    def poisons(self) -> bool:
        """Whether it changes what attackers train on."""
        return type(self).poison is not Attack.poison

    @property
    def crafts(self) -> bool:
        """Whether it changes what attackers send."""
        return type(self).craft is not Attack.craft

    def poison(
        self,
        features: FloatArray,
        labels: IntArray,
        num_classes: int,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[FloatArray, IntArray]:
        """What an attacking client trains on in place of its examples; the same in each round.

        Args:
            features: float32 [k, *shape], scaled; a copy that may be written to.
            labels: int64 [k]; is only read.
            num_classes: of the task.
            rng: the client's stream.
        """
        return features, labels

    def craft(self, honest: Differences, context: AttackContext) -> Differences:  # noqa: ARG002
        """What the attacking clients of a chunk send in place of what they have trained.

        Args:
            honest: float64 [attackers, P], trained minus received parameters of each.
            context: of the round and the chunk.

        Returns:
            float64 [attackers, P], or [P] if all send the same.
        """
        return honest


def make_attack(settings: TaskSettings) -> Attack | None:
    """The attack that the settings name, if any; raises `BadInput` if it cannot be made."""
    if not settings.attack:
        return None
    attack: Attack = settings.plugin("attack")
    return attack


def check_attack(attack: Attack | None, settings: TaskSettings, strategy: Strategy, partitioner: Partitioner) -> None:
    """Check that an attack works with the rest of a task; raises `BadInput` with the reason if it does not."""
    if attack is None:
        return
    name, options = settings.attack or type(attack).__name__, attack.options
    count = len(set(options.clients)) or options.attackers
    if count < attack.least_attackers:
        raise BadInput(
            f"the attack {name} estimates from what its own clients train, and needs at least "
            f"{attack.least_attackers} attackers: raise attack_options.attackers"
        )
    if attack.objectives and settings.objective not in attack.objectives:
        raise BadInput(
            f"the attack {name} changes labels of classes, and the objective {settings.objective} has other targets "
            f"(it works with {', '.join(sorted(attack.objectives))})"
        )
    if attack.crafts and tuple(strategy.uplink_arrays) != (PARAMETERS,):
        raise BadInput(
            f"the attack {name} says what attackers send as parameters, and the clients of {settings.strategy} send "
            f"{', '.join(strategy.uplink_arrays)}: choose another strategy, or an attack on the data"
        )
    if partitioner.per_node:  # the nodes that take part decide how many clients there are
        return
    if options.clients and max(options.clients) >= settings.num_clients:
        raise BadInput(
            f"client {max(options.clients)} is to attack, and the clients are 0 to {settings.num_clients - 1}: "
            "change attack_options.clients"
        )
    if count > settings.num_clients:
        raise BadInput(f"{count} of {settings.num_clients} clients are to attack: lower attack_options.attackers")


def attacking_clients(attack: Attack | None, settings: TaskSettings) -> frozenset[int]:
    """The clients of a task that attack: those that the options list, or as many as they say, drawn by the seed."""
    if attack is None:
        return frozenset()
    if attack.options.clients:
        return frozenset(attack.options.clients)
    count = min(attack.options.attackers, settings.num_clients)
    return frozenset(generator(settings.seed, "attackers").choice(settings.num_clients, count, replace=False).tolist())


def context_of(attackers: frozenset[int], settings: TaskSettings, number: int, here: Sequence[int]) -> AttackContext:
    """The context of the attacking clients `here` of a chunk in round `number`."""
    expected = round(settings.cohort_size * len(attackers) / settings.num_clients)
    return AttackContext(settings.seed, number, tuple(here), settings.cohort_size, max(1, expected))


def attack_note(settings: TaskSettings) -> str:
    """What the record of a task says of its attack; empty if it has none."""
    clients = sorted(attacking_clients(make_attack(settings), settings))
    if not clients:
        return ""
    named = some([str(client) for client in clients], MAX_NAMED)
    return f"this task studies the attack {settings.attack}: the clients {named} attack, do not use its model"
