"""Metrics of classes: what follows from how often each class is right, predicted and there, and from its scores.

Outputs are logits float64 [m, classes], labels int64 [m]; every metric is over all examples together, not the mean of
the batches. A class that the test set lacks has no recall, and does not count in means.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedsim.learning.examples import IntArray
from fedsim.learning.metrics import Accumulator, OutputArray, average_precision, roc_auc

MOST_RANKED_CLASSES = 100
"""Classes up to which the scores of all examples are kept, to rank them."""
MOST_CONFUSED_CLASSES = 20
"""Classes up to which a confusion matrix is recorded."""
BINS = 15
"""Bins of the confidence, as in Guo et al. 2017."""
Counts = NDArray[np.int64]


class ClassCounts:
    """How often each class is right, there and predicted, int64 [classes] each."""

    def __init__(self, num_classes: int) -> None:
        self.right = np.zeros(num_classes, np.int64)
        self.actual = np.zeros(num_classes, np.int64)
        self.predicted = np.zeros(num_classes, np.int64)

    def add(self, outputs: OutputArray, labels: IntArray) -> None:
        """Add a batch; the class with the largest logit is predicted."""
        predicted, count = outputs.argmax(axis=1), len(self.right)
        self.right += np.bincount(labels[predicted == labels], minlength=count)
        self.actual += np.bincount(labels, minlength=count)
        self.predicted += np.bincount(predicted, minlength=count)

    def shares(self, of: Counts) -> tuple[float | None, ...]:
        """The right ones among `of`, class by class; None where there are none."""
        return shares_of(self.right, of)


def shares_of(part: Counts, of: Counts) -> tuple[float | None, ...]:
    """The quotients, one by one; None where the divisor is 0."""
    return tuple(float(one / all_) if all_ else None for one, all_ in zip(part, of, strict=True))


def mean_of(values: tuple[float | None, ...]) -> float | None:
    """The mean of those that are defined; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


class ClassRecall(ClassCounts):
    """Per class, the share of its examples that are predicted as it."""

    def value(self) -> tuple[float | None, ...]:
        """None for an absent class."""
        return self.shares(self.actual)


class ClassPrecision(ClassCounts):
    """Per class, the share of the predictions of it that are right."""

    def value(self) -> tuple[float | None, ...]:
        """None for a class that is never predicted."""
        return self.shares(self.predicted)


class ClassF1(ClassCounts):
    """Per class, the harmonic mean of recall and precision, which is the Dice coefficient 2·|A∩B| / (|A| + |B|)."""

    def value(self) -> tuple[float | None, ...]:
        """None for a class that is neither there nor predicted."""
        return shares_of(2 * self.right, self.actual + self.predicted)


class ClassIoU(ClassCounts):
    """Per class, intersection over union (Jaccard): |A∩B| / |A∪B|."""

    def value(self) -> tuple[float | None, ...]:
        """None for a class that is neither there nor predicted."""
        return self.shares(self.actual + self.predicted - self.right)


class Accuracy(ClassCounts):
    """The share of the examples whose most likely class is right."""

    def value(self) -> float:
        """The share of all classes together."""
        return float(self.right.sum() / self.actual.sum())


class BalancedAccuracy(ClassCounts):
    """The mean recall of the classes that are there."""

    def value(self) -> float | None:
        """All classes count the same."""
        return mean_of(self.shares(self.actual))


class MacroF1(ClassF1):
    """The mean F1 of the classes that are there or predicted."""

    def value(self) -> float | None:  # type: ignore[override] # one value instead of one for each class
        """All classes count the same."""
        return mean_of(super().value())


class MeanIoU(ClassIoU):
    """The mean intersection over union of the classes that are there or predicted."""

    def value(self) -> float | None:  # type: ignore[override] # one value instead of one for each class
        """All classes count the same."""
        return mean_of(super().value())


class Confusion:
    """Per class, the share of its examples that are predicted as each class."""

    def __init__(self, num_classes: int) -> None:
        self._counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, outputs: OutputArray, labels: IntArray) -> None:
        """Add a batch."""
        np.add.at(self._counts, (labels, outputs.argmax(axis=1)), 1)

    def value(self) -> tuple[tuple[float, ...] | None, ...]:
        """A row for each class; None for an absent one."""
        return tuple(tuple((row / row.sum()).tolist()) if row.any() else None for row in self._counts)


class Kept:
    """The outputs and labels of all examples, for metrics that need their order."""

    def __init__(self) -> None:
        self._outputs: list[OutputArray] = []
        self._labels: list[NDArray[np.generic]] = []

    def add(self, outputs: OutputArray, labels: NDArray[np.generic]) -> None:
        """Keep a batch."""
        self._outputs.append(outputs)
        self._labels.append(labels)

    @property
    def outputs(self) -> OutputArray:
        """Of all examples."""
        return np.concatenate(self._outputs)

    @property
    def labels(self) -> NDArray[np.generic]:
        """Of all examples."""
        return np.concatenate(self._labels)


Score = Callable[[OutputArray, NDArray[np.generic]], float | None]
"""A metric of scores float64 [n] and flags [n] that are 1 or 0."""


class OneVersusRest(Kept):
    """The mean over the classes of a metric of the class's probability against all others."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self._score = score

    def value(self) -> float | None:
        """Classes that the test set lacks, or has alone, do not count."""
        outputs, labels = log_softmax(self.outputs), self.labels
        found = [self._score(outputs[:, label], labels == label) for label in range(outputs.shape[1])]
        return mean_of(tuple(found))


class OfTwo(Kept):
    """A metric of class 1 of two."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self._score = score

    def value(self) -> float | None:
        """None if a class is absent."""
        return self._score(log_odds(self.outputs), self.labels)


class Brier:
    """The mean squared difference between the probability of class 1 of two and whether it is there (Brier 1950)."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, outputs: OutputArray, labels: IntArray) -> None:
        """Add a batch."""
        self._sum += float(np.square(np.exp(log_softmax(outputs)[:, 1]) - labels).sum())
        self._count += len(labels)

    def value(self) -> float:
        """Between 0 and 1."""
        return self._sum / self._count


class CalibrationError:
    """Expected calibration error (Guo et al. 2017, equation 3): how far confidence and accuracy differ, in bins."""

    def __init__(self) -> None:
        self._count, self._right, self._confidence = (np.zeros(BINS) for _ in range(3))

    def add(self, outputs: OutputArray, labels: IntArray) -> None:
        """Add a batch; a bin contains its upper bound."""
        predicted, logs = outputs.argmax(axis=1), log_softmax(outputs)
        confidence = np.exp(np.take_along_axis(logs, predicted[:, None], axis=1)[:, 0])
        place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self._count += np.bincount(place, minlength=BINS)
        self._right += np.bincount(place, predicted == labels, minlength=BINS)
        self._confidence += np.bincount(place, confidence, minlength=BINS)

    def value(self) -> float:
        """Between 0 and 1."""
        return float(np.abs(self._right - self._confidence).sum() / self._count.sum())


class Perplexity:
    """e to the mean of -ln of the probability of each right class."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, outputs: OutputArray, labels: IntArray) -> None:
        """Add a batch."""
        self._sum -= float(np.take_along_axis(log_softmax(outputs), labels[:, None], axis=1).sum())
        self._count += len(labels)

    def value(self) -> float:
        """At least 1; infinite beyond float64."""
        with np.errstate(over="ignore"):
            return float(np.exp(self._sum / self._count))


def log_softmax(outputs: OutputArray) -> OutputArray:
    """The logarithms of the probabilities, float64 [m, classes]."""
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    logarithms: OutputArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms


def log_odds(outputs: OutputArray) -> OutputArray:
    """Of class 1 of two, float64 [m]: it ranks as the probability does, without its ties near 0 and 1."""
    difference: OutputArray = outputs[:, 1] - outputs[:, 0]
    return difference


def ranked_auc(num_classes: int) -> Accumulator | None:
    """ROC AUC of class 1 of two, or one versus rest of more; None of very many."""
    if num_classes == 2:
        return OfTwo(roc_auc)
    return OneVersusRest(roc_auc) if num_classes <= MOST_RANKED_CLASSES else None


def confusion(num_classes: int) -> Accumulator | None:
    """The confusion matrix; None of many classes, of which it would be too large a part of a round's record."""
    return Confusion(num_classes) if num_classes <= MOST_CONFUSED_CLASSES else None


def auc_of_two(_: int) -> Accumulator:
    """ROC AUC of class 1 of two."""
    return OfTwo(roc_auc)


def precision_of_two(_: int) -> Accumulator:
    """Average precision of class 1 of two."""
    return OfTwo(average_precision)


def brier(_: int) -> Accumulator:
    """The Brier score of class 1 of two."""
    return Brier()


def calibration_error(_: int) -> Accumulator:
    """The expected calibration error."""
    return CalibrationError()


def perplexity(_: int) -> Accumulator:
    """The perplexity."""
    return Perplexity()
