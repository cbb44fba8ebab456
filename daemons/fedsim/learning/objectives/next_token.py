"""The objective of language models."""

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


class NextToken(Objective):
    """Cross-entropy of the token that follows at each place of a sequence.

    An example is a sequence of tokens, its target the same sequence one place further; all places count alike.
    """

    title = gettext_noop("next_token – cross-entropy of what follows in a sequence")
    targets = "tokens"
    metrics = MetricSet(
        (
            ACCURACY,
            Metric("perplexity", gettext_noop("Perplexity"), False, accumulator=of_classes.perplexity),
            LOSS,
            TRAIN_LOSS,
        ),
        headline_name="accuracy",
    )

    def output_shape(self, feature_shape: tuple[int, ...], num_outputs: int) -> tuple[int, ...]:
        """The logits of all tokens at each place: [length, tokens]."""
        return (feature_shape[0], num_outputs)

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Each place of each sequence is one example."""
        return outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)

    def problem(self, targets: Targets, feature_shape: tuple[int, ...], num_outputs: int) -> str:
        """A sequence has one dimension."""
        found = super().problem(targets, feature_shape, num_outputs)
        shape = list(feature_shape)
        return found or ("" if len(shape) == 1 else f"has examples of the shape {shape}, and sequences are [length]")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of logits float32 [b, length, tokens] and tokens int64 [b, length]."""
        from torch.nn.functional import cross_entropy  # noqa: PLC0415 - imports torch

        return cross_entropy(*self.rows(outputs, targets))
