"""The objective of classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.learning import class_metrics as of_classes
from fedsim.learning.metrics import LOSS, TRAIN_LOSS, Metric, MetricFormat, MetricSet
from fedsim.learning.objectives import Objective
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor

ACCURACY = Metric("accuracy", gettext_noop("Accuracy"), True, MetricFormat.SHARE, accumulator=of_classes.Accuracy)
BALANCED = Metric(
    "balanced_accuracy",
    gettext_noop("Balanced accuracy"),
    True,
    MetricFormat.SHARE,
    accumulator=of_classes.BalancedAccuracy,
)
RECALL = Metric("recall", gettext_noop("Recall"), True, MetricFormat.SHARE, True, of_classes.ClassRecall)
PRECISION = Metric("precision", gettext_noop("Precision"), True, MetricFormat.SHARE, True, of_classes.ClassPrecision)
CLASSIFICATION = MetricSet(
    (
        ACCURACY,
        LOSS,
        TRAIN_LOSS,
        BALANCED,
        Metric("macro_f1", gettext_noop("Macro F1"), True, accumulator=of_classes.MacroF1),
        Metric("auc", gettext_noop("ROC AUC"), True, accumulator=of_classes.ranked_auc),
        Metric(
            "calibration_error",
            gettext_noop("Calibration error"),
            False,
            accumulator=of_classes.calibration_error,
        ),
        RECALL,
        PRECISION,
        Metric("f1", gettext_noop("F1"), True, per_class=True, accumulator=of_classes.ClassF1),
        Metric(
            "confusion",
            gettext_noop("Confusion matrix"),
            None,
            MetricFormat.SHARE,
            True,
            of_classes.confusion,
            by_prediction=True,
        ),
    ),
    headline_name="accuracy",
)


class Classification(Objective):
    """Cross-entropy of the classes' logits."""

    title = gettext_noop("classification – cross-entropy of the classes")
    metrics = CLASSIFICATION

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of logits float32 [b, classes] and labels int64 [b]."""
        from torch.nn.functional import cross_entropy  # noqa: PLC0415 - imports torch

        return cross_entropy(outputs, targets)
