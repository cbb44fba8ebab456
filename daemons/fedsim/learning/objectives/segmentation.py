"""The objective of models that give each pixel a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.data_schema import Targets
from fedsim.learning import class_metrics as of_classes
from fedsim.learning.metrics import LOSS, TRAIN_LOSS, Metric, MetricSet
from fedsim.learning.objectives import Objective
from fedsim.learning.objectives.classification import ACCURACY
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class Segmentation(Objective):
    """Cross-entropy of each pixel's class. Dice and IoU are over the pixels of all images of the test set together."""

    title = gettext_noop("segmentation – cross-entropy of each pixel's class")
    targets = "mask"
    metrics = MetricSet(
        (
            Metric("mean_dice", gettext_noop("Mean Dice"), True, accumulator=of_classes.MacroF1),
            Metric("mean_iou", gettext_noop("Mean IoU"), True, accumulator=of_classes.MeanIoU),
            LOSS,
            TRAIN_LOSS,
            ACCURACY,
            Metric("dice", gettext_noop("Dice"), True, per_class=True, accumulator=of_classes.ClassF1),
            Metric("iou", gettext_noop("IoU"), True, per_class=True, accumulator=of_classes.ClassIoU),
        ),
        headline_name="mean_dice",
    )

    def output_shape(self, feature_shape: tuple[int, ...], num_outputs: int) -> tuple[int, ...]:
        """The logits of each class at each pixel: [classes, height, width]."""
        return (num_outputs, *feature_shape[-2:])

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each pixel of each image is one example."""
        return outputs.movedim(1, -1).reshape(-1, outputs.shape[1]), targets.reshape(-1)

    def problem(self, targets: Targets, feature_shape: tuple[int, ...], num_outputs: int) -> str:
        """An image has two or three dimensions."""
        found = super().problem(targets, feature_shape, num_outputs)
        shape = list(feature_shape)
        fits = len(shape) in {2, 3}
        return found or (
            "" if fits else f"has examples of the shape {shape}, and images are [height, width] or [channels, …]"
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of logits float32 [b, classes, height, width] and classes int64 [b, height, width]."""
        from torch.nn.functional import cross_entropy  # noqa: PLC0415 - imports torch

        return cross_entropy(outputs, targets)
