"""Objectives: the loss that clients minimise and the metrics of a test. One class in one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fedsim.errors import BadInput
from fedsim.learning.metrics import NOT_DECLARED, MetricSet
from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings

if TYPE_CHECKING:
    from torch import Tensor


class Objective(Plugin):
    """The base of all objectives.

    Attributes:
        metrics: what a test computes and which of it sums up a task.
    """

    metrics: ClassVar[MetricSet] = NOT_DECLARED

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar, from the model's outputs [b, …] and the targets [b]."""
        raise NotImplementedError


def make_objective(settings: TaskSettings) -> Objective:
    """The objective that the settings name; raises `BadInput` if it cannot be made."""
    objective: Objective = settings.plugin("objective")
    return objective


def metrics_of(settings: TaskSettings) -> MetricSet:
    """The metrics of a task's objective; none are declared where it is not installed any more."""
    try:
        return make_objective(settings).metrics
    except BadInput:
        return NOT_DECLARED
