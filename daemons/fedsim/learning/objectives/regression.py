"""The objective of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.learning import number_metrics as of_numbers
from fedsim.learning.metrics import LOSS, TRAIN_LOSS, Metric, MetricSet
from fedsim.learning.objectives import Objective
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class Regression(Objective):
    """The squared error of numbers."""

    title = gettext_noop("regression – squared error of numbers")
    targets = "numbers"
    metrics = MetricSet(
        (
            Metric("r2", gettext_noop("R²"), True, accumulator=of_numbers.RSquared),
            Metric("mse", gettext_noop("Mean squared error"), False, accumulator=of_numbers.MeanSquaredError),
            Metric("mae", gettext_noop("Mean absolute error"), False, accumulator=of_numbers.MeanAbsoluteError),
            LOSS,
            TRAIN_LOSS,
        ),
        headline_name="r2",
    )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of outputs and numbers, float32 [b, k] each."""
        from torch.nn.functional import mse_loss  # noqa: PLC0415 - imports torch

        return mse_loss(outputs, targets.to(outputs.dtype))
