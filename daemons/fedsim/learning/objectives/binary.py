"""The objective of two classes of which one is looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.data_schema import Targets
from fedsim.learning import class_metrics as of_classes
from fedsim.learning.metrics import LOSS, TRAIN_LOSS, Metric, MetricSet
from fedsim.learning.objectives import Objective
from fedsim.learning.objectives.classification import ACCURACY, BALANCED, PRECISION, RECALL
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class Binary(Objective):
    """Cross-entropy of two classes, judged by how well class 1 is ranked above class 0, whatever the threshold.

    A model has two logits; the probability of class 1 is the logistic function of their difference.
    """

    title = gettext_noop("binary – cross-entropy of two classes, judged by their ranking")
    metrics = MetricSet(
        (
            Metric("auc", gettext_noop("ROC AUC"), True, accumulator=of_classes.auc_of_two),
            Metric(
                "average_precision", gettext_noop("Average precision"), True, accumulator=of_classes.precision_of_two
            ),
            LOSS,
            TRAIN_LOSS,
            ACCURACY,
            BALANCED,
            Metric("brier", gettext_noop("Brier score"), False, accumulator=of_classes.brier),
            RECALL,
            PRECISION,
        ),
        headline_name="auc",
    )

    def problem(self, targets: Targets, feature_shape: tuple[int, ...], num_outputs: int) -> str:
        """Two classes are needed."""
        found = super().problem(targets, feature_shape, num_outputs)
        return found or ("" if num_outputs == 2 else f"has {num_outputs} classes, and this objective needs 2")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of logits float32 [b, 2] and labels int64 [b]."""
        from torch.nn.functional import cross_entropy  # noqa: PLC0415 - imports torch

        return cross_entropy(outputs, targets)
