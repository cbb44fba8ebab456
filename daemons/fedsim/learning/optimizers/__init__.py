"""Optimizers: how a client's parameters follow the gradients. One class in one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

Step = Callable[[Sequence["Tensor"]], None]
"""Takes one step along the gradients, one for each parameter; it may change them."""


class Optimizer(Plugin):
    """The base of all client optimizers."""

    def start(self, parameters: Sequence[Tensor], learning_rate: float) -> Step:
        """Begin one client's training in one round.

        Args:
            parameters: outside of autograd; a step changes them in place.
            learning_rate: the task's `local_learning_rate`.

        Returns:
            A function that takes one step; what it remembers ends with the client's round.
        """
        raise NotImplementedError

    def effective_steps(self, num_steps: int) -> float | None:  # noqa: ARG002
        """How many plain gradient steps so many steps count for; None where steps are no sums of gradients."""
        return None


def make_optimizer(settings: TaskSettings) -> Optimizer:
    """The optimizer that the settings name; raises `BadInput` if it cannot be made."""
    optimizer: Optimizer = settings.plugin("optimizer")
    return optimizer
