"""Objectives: the loss that clients minimise and the metrics of a test. One class in one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fedsim.data_schema import TARGETS, Targets
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
        targets: the kind of targets that the loss takes; data with others is refused.
    """

    metrics: ClassVar[MetricSet] = NOT_DECLARED
    targets: ClassVar[Targets] = "classes"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar, from the model's outputs [b, …] and the targets [b] or [b, …]."""
        raise NotImplementedError

    def output_shape(self, feature_shape: tuple[int, ...], num_outputs: int) -> tuple[int, ...]:  # noqa: ARG002
        """The shape of what the model gives for one example; `num_outputs` are classes, numbers or flags."""
        return (num_outputs,)

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets as metrics take them: [m, num_outputs], and [m] or [m, num_outputs]."""
        return outputs, targets

    def problem(self, targets: Targets, feature_shape: tuple[int, ...], num_outputs: int) -> str:  # noqa: ARG002
        """Why data does not fit this objective, as the end of a sentence that begins with the data; "" if it does.

        Args:
            targets: the kind of its targets.
            feature_shape: of one example.
            num_outputs: its classes, numbers or flags.
        """
        if targets == self.targets:
            return ""
        return f"has targets that are {TARGETS[targets]}, and this objective needs {TARGETS[self.targets]}"


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


def check_data(
    objective: Objective, name: str, targets: Targets, feature_shape: tuple[int, ...], num_outputs: int
) -> None:
    """Raise `BadInput` unless data fits the objective, which messages call `name`; see `Objective.problem`."""
    if problem := objective.problem(targets, feature_shape, num_outputs):
        raise BadInput(f"objective {name}: the data set {problem}: choose another objective or data set")
