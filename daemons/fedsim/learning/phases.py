"""Phases that a strategy or a transform adds to a task: the server asks every node, and each one answers once.

Statistics before the training, approvals, the exchange of keys, what only the end of a round or of the task needs: each
is a `Phase`, listed in the `phases` of its strategy or transform. Questions and answers are small JSON objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fedsim.errors import BadInput

if TYPE_CHECKING:
    from fedsim.learning.engines import ClientData

Content = dict[str, Any]
"""A question or an answer: names and values that JSON can hold."""


class Position(StrEnum):
    """Where in a task a phase runs."""

    BEFORE_TRAINING = "before training"  # once, when everything that round 1 needs is available
    WITHIN_ROUND = "within round"  # in each round, between its roster and its aggregation
    AFTER_TRAINING = "after training"  # once, before the final model is sent


@dataclass(frozen=True)
class PhaseContext:
    """What the server knows when a phase begins.

    Attributes:
        round: that is under way; 0 before the training.
        nodes: that are asked.
        answers: of earlier phases, before the training or in this round: by the phase's name and the node's.
    """

    round: int
    nodes: tuple[str, ...]
    answers: Mapping[str, Mapping[str, Content]] = field(default_factory=dict)


class Phase:
    """The base of all phases: both halves of a question to the nodes. Nothing is kept in the instance.

    Attributes:
        name: letters, digits and underscores; unique in a task.
        position: where it runs.
        timeout_seconds: how long the server waits for the answers.
        required: whether the task fails if a node has not answered by then; else it continues without.
    """

    name: str
    position: Position = Position.BEFORE_TRAINING
    timeout_seconds: float = 60.0
    required: bool = True

    def ask(self, context: PhaseContext) -> Content:  # noqa: ARG002
        """On the server: the question, the same for all nodes. May be asked again after a restart."""
        return {}

    def answer(self, question: Content, data: ClientData) -> Content:
        """On a node, in a worker: the answer, which leaves the node. The first one of each node counts.

        Args:
            question: of the server.
            data: the task's clients on this node.

        Raises:
            BadInput: the node does not take part, for this reason.
        """
        raise NotImplementedError

    def summary(self, answers: Mapping[str, Content]) -> str:  # noqa: ARG002
        """On the server: a summary of the answers, one sentence for the task's page; empty for none."""
        return ""


def distinct_phases(phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """The phases in order, each once; raises `BadInput` where two have the same name."""
    found: dict[str, Phase] = {}
    for phase in phases:
        if found.setdefault(phase.name, phase) is not phase:
            raise BadInput(f"two phases of the task are called {phase.name}: combine other plug-ins")
    return tuple(found.values())
