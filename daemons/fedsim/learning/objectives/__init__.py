"""Objectives: the loss that clients minimise. One class in one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings

if TYPE_CHECKING:
    from torch import Tensor


class Objective(Plugin):
    """The base of all objectives."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar, from the model's outputs [b, …] and the targets [b]."""
        raise NotImplementedError


def make_objective(settings: TaskSettings) -> Objective:
    """The objective that the settings name; raises `BadInput` if it cannot be made."""
    objective: Objective = settings.plugin("objective")
    return objective
