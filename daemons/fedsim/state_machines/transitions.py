"""Transition tables: which phases a state machine has, and which event may move it from one to another.

A machine moves only along its table, and the diagrams in the documentation are drawn from the same tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

PhaseT = TypeVar("PhaseT", bound=StrEnum)


class IllegalTransitionError(Exception):
    """A machine tried to move in a way that its table does not contain: a defect of the machine or of the table."""


@dataclass(frozen=True)
class Transition(Generic[PhaseT]):
    """One row of a table.

    Attributes:
        source: the phase before.
        target: the phase after.
        triggers: names of the events that can cause the move.
        label: what must be true for it, in words.
    """

    source: PhaseT
    target: PhaseT
    triggers: tuple[str, ...]
    label: str


class TransitionTable(Generic[PhaseT]):
    """The moves of one machine. Without a row there is no move; staying in a phase needs no row."""

    def __init__(self, initial: tuple[PhaseT, ...], rows: tuple[Transition[PhaseT], ...]) -> None:
        self.initial = initial
        self.rows = rows

    def move(self, source: PhaseT, target: PhaseT, trigger: str) -> PhaseT:
        """Return the target of an allowed move; raise `IllegalTransitionError` for any other."""
        if source is target or any(
            row.source is source and row.target is target and trigger in row.triggers for row in self.rows
        ):
            return target
        raise IllegalTransitionError(f"{trigger} must not move from {source} to {target}")


def names(*events: type) -> tuple[str, ...]:
    """The names of event classes, as triggers of a row."""
    return tuple(event.__name__ for event in events)
