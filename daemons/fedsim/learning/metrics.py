"""How good a model is on a test set, and what it says of new examples; batches bound the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.errors import BadInput
from fedsim.learning.examples import Examples, FloatArray, IntArray
from fedsim.learning.models import Prepares

BATCH = 500


@dataclass(frozen=True)
class Metrics:
    """What a test on `num_examples` examples gives.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of the examples whose most likely class is right.
        recall: the same among the examples of each class; None for a class that the test set lacks.
        auc: area under the ROC curve for class 1 of two; None with more classes, or where one is absent.
    """

    num_examples: int
    loss: float
    accuracy: float
    recall: tuple[float | None, ...]
    auc: float | None


def evaluate(model: nn.Module, examples: Examples, *, batch_size: int = BATCH) -> Metrics:
    """Test a model, on the device where its parameters lie; it is left in evaluation mode.

    Raises:
        BadInput: there is no example, or one is of a class that the model does not know.
    """
    labels = examples.labels
    if not len(labels):
        raise BadInput("the test set is empty; give it at least one example")
    loss = 0.0
    guesses = np.empty(len(labels), np.int64)
    margins = np.empty(len(labels), np.float64)
    num_classes = 0
    for here in _batches(len(labels), batch_size):
        logits = _logits(model, examples.take(here)).double().cpu()
        num_classes = logits.shape[1]
        if not 0 <= labels[here].min() <= labels[here].max() < num_classes:
            raise BadInput(
                f"the test set has labels from {labels.min()} to {labels.max()}, the model knows the classes 0 to "
                f"{num_classes - 1}: use the test set of the data that it is trained on"
            )
        loss += float(nn.functional.cross_entropy(logits, torch.from_numpy(labels[here].copy()), reduction="sum"))
        guesses[here] = logits.argmax(dim=1).numpy()
        # The difference of the logits ranks as the probability does, without its ties near 0 and 1.
        margins[here] = (logits[:, -1] - logits[:, 0]).numpy()
    right = guesses == labels
    recall = tuple(
        float(right[labels == label].mean()) if np.any(labels == label) else None for label in range(num_classes)
    )
    auc = roc_auc(margins, labels) if num_classes == 2 else None
    return Metrics(len(labels), loss / len(labels), float(right.mean()), recall, auc)


def predict(model: nn.Module, features: NDArray[Any], *, batch_size: int = BATCH) -> FloatArray:
    """The probability of each class, float32 [n, num_classes], for features float32 [n, *shape] (`Examples.take`)."""
    parts = [
        torch.softmax(_logits(model, features[here].astype(np.float32)), dim=1).cpu().numpy()
        for here in _batches(len(features), batch_size)
    ]
    return np.concatenate(parts)


def roc_auc(scores: NDArray[np.float64], labels: IntArray) -> float | None:
    """Area under the ROC curve by ranks (Mann-Whitney); equal scores share a rank. None if a class is absent."""
    positives = int((labels == 1).sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]
    above = float(ranks[labels == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@torch.no_grad()
def _logits(model: nn.Module, features: FloatArray) -> Tensor:
    model.eval()
    inputs = torch.from_numpy(features).to(next(model.parameters()).device)
    outputs: Tensor = model(model.prepare(inputs, None) if isinstance(model, Prepares) else inputs)
    return outputs
