"""Metrics: what an evaluation computes, and how pages, tables and logs show it. A new metric is added only here.

The web reads the descriptions, so this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.learning.examples import IntArray
from fedsim.plugins import gettext_noop

# Metrics by name, and per-class metrics by name with a value for each class; None: not defined (an absent class).
MetricValues = dict[str, float | None]
ClassValues = dict[str, tuple[float | None, ...]]
OutputArray = NDArray[np.float64]
TRAIN_PREFIX = "train_"


class MetricFormat(StrEnum):
    """How a metric's value is written."""

    SHARE = "share"  # between 0 and 1, as a percentage
    NUMBER = "number"


class Accumulator(Protocol):
    """Computes a metric over the batches of a test set."""

    def add(self, outputs: OutputArray, labels: IntArray) -> None:
        """Add a batch: the model's outputs (logits) float64 [b, num_classes], labels int64 [b]."""

    def value(self) -> float | tuple[float | None, ...] | None:
        """The metric over all batches; a tuple if it is per class."""


@dataclass(frozen=True)
class Metric:
    """A metric's description, and how it is computed.

    Attributes:
        name: in records, the API, CSV files and logs; `train_…` for one that clients report about their training.
        label: in pages, marked for translation.
        higher_is_better: the direction of improvement; None if there is none.
        format: how its values are written.
        per_class: whether it has a value for each class.
        accumulator: makes an accumulator for a number of classes; returns None where the metric does not apply. None
            for the loss, which comes from the objective, and for metrics that clients report.
    """

    name: str
    label: str
    higher_is_better: bool | None = None
    format: MetricFormat = MetricFormat.NUMBER
    per_class: bool = False
    accumulator: Callable[[int], Accumulator | None] | None = None


@dataclass(frozen=True)
class MetricSet:
    """The metrics of an objective, in the order in which they are shown; the headline sums up a task."""

    metrics: tuple[Metric, ...]
    headline_name: str

    @property
    def headline(self) -> Metric:
        """The metric that lists and summaries of tasks show."""
        return self.get(self.headline_name)

    def get(self, name: str) -> Metric:
        """The description of a metric; a plain one for a name that is not declared, as in the records of old tasks."""
        return next((metric for metric in self.metrics if metric.name == name), Metric(name, name))

    def in_order(self, names: Iterable[str]) -> list[Metric]:
        """The metrics with these names: declared ones first, in their order, then others by name."""
        order = [metric.name for metric in self.metrics]
        found = sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))
        return [self.get(name) for name in found]


class ClassAccuracy:
    """Per class, the share of its examples whose most likely class is right; None for an absent class."""

    def __init__(self, num_classes: int) -> None:
        self._right = np.zeros(num_classes, np.int64)
        self._all = np.zeros(num_classes, np.int64)

    def add(self, outputs: OutputArray, labels: IntArray) -> None:
        """Add a batch."""
        right = labels[outputs.argmax(axis=1) == labels]
        self._right += np.bincount(right, minlength=len(self._right))
        self._all += np.bincount(labels, minlength=len(self._all))

    def value(self) -> tuple[float | None, ...]:
        """The share of each class."""
        counts = zip(self._right, self._all, strict=True)
        return tuple(float(right / count) if count else None for right, count in counts)


class TotalAccuracy(ClassAccuracy):
    """The share of the examples whose most likely class is right."""

    def value(self) -> float:  # type: ignore[override] # one value instead of one for each class
        """The share of all classes together."""
        return float(self._right.sum() / self._all.sum())


def _two_classes(num_classes: int) -> Accumulator | None:
    return RocAuc() if num_classes == 2 else None


class RocAuc:
    """Area under the ROC curve for class 1 of two."""

    def __init__(self) -> None:
        self._scores: list[OutputArray] = []
        self._labels: list[IntArray] = []

    def add(self, outputs: OutputArray, labels: IntArray) -> None:
        """Add a batch."""
        # The difference of the logits ranks as the probability does, without its ties near 0 and 1.
        self._scores.append(outputs[:, 1] - outputs[:, 0])
        self._labels.append(labels)

    def value(self) -> float | None:
        """The area; None if a class is absent."""
        return roc_auc(np.concatenate(self._scores), np.concatenate(self._labels))


def roc_auc(scores: OutputArray, labels: IntArray) -> float | None:
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


CLASSIFICATION = MetricSet(
    (
        Metric("accuracy", gettext_noop("Accuracy"), True, MetricFormat.SHARE, accumulator=TotalAccuracy),
        Metric("loss", gettext_noop("Loss"), False),
        Metric("train_loss", gettext_noop("Training loss"), False),
        Metric("auc", gettext_noop("ROC AUC"), True, accumulator=_two_classes),
        Metric("recall", gettext_noop("Recall"), True, MetricFormat.SHARE, per_class=True, accumulator=ClassAccuracy),
    ),
    headline_name="accuracy",
)

NOT_DECLARED = MetricSet((), headline_name="loss")
"""For tasks whose objective is not installed: metrics are shown by their names."""
