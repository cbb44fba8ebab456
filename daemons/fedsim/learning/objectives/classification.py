"""The objective of classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.learning.metrics import CLASSIFICATION
from fedsim.learning.objectives import Objective
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class Classification(Objective):
    """Cross-entropy of the classes' logits."""

    title = gettext_noop("classification – cross-entropy of the classes")
    metrics = CLASSIFICATION

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of logits float32 [b, classes] and labels int64 [b]."""
        from torch.nn.functional import cross_entropy  # noqa: PLC0415 - imports torch

        return cross_entropy(outputs, targets)
