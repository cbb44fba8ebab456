"""The objective of labels that do not exclude each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.learning import number_metrics as of_flags
from fedsim.learning.metrics import LOSS, TRAIN_LOSS, Metric, MetricFormat, MetricSet
from fedsim.learning.objectives import Objective
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class Multilabel(Objective):
    """Cross-entropy of each flag on its own: any number of them can be set."""

    title = gettext_noop("multilabel – cross-entropy of each flag")
    targets = "flags"
    metrics = MetricSet(
        (
            Metric("macro_f1", gettext_noop("Macro F1"), True, accumulator=of_flags.MacroFlagF1),
            Metric("micro_f1", gettext_noop("Micro F1"), True, accumulator=of_flags.MicroF1),
            LOSS,
            TRAIN_LOSS,
            Metric("auc", gettext_noop("ROC AUC"), True, accumulator=of_flags.flag_auc),
            Metric("average_precision", gettext_noop("Average precision"), True, accumulator=of_flags.flag_precision),
            Metric(
                "flag_accuracy",
                gettext_noop("Right flags"),
                True,
                MetricFormat.SHARE,
                accumulator=of_flags.FlagAccuracy,
            ),
            Metric(
                "exact_match",
                gettext_noop("All flags right"),
                True,
                MetricFormat.SHARE,
                accumulator=of_flags.ExactMatch,
            ),
            Metric("recall", gettext_noop("Recall"), True, MetricFormat.SHARE, True, of_flags.FlagRecall),
            Metric("precision", gettext_noop("Precision"), True, MetricFormat.SHARE, True, of_flags.FlagPrecision),
        ),
        headline_name="macro_f1",
    )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean binary cross-entropy of logits float32 [b, k] and flags float32 [b, k]."""
        from torch.nn.functional import binary_cross_entropy_with_logits  # noqa: PLC0415 - imports torch

        return binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
