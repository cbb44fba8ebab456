"""Metrics of outputs that are numbers, and of flags that are set or not; outputs and targets are [m, k]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedsim.learning.class_metrics import Kept, Score, mean_of, shares_of
from fedsim.learning.metrics import Accumulator, OutputArray, average_precision, roc_auc


class Errors:
    """Sums over the examples, float64 [k] each: of errors, and of the targets' squared distance from their mean."""

    def __init__(self, num_outputs: int) -> None:
        self.count = 0
        self.squared, self.absolute = np.zeros(num_outputs), np.zeros(num_outputs)
        self._mean, self.spread = np.zeros(num_outputs), np.zeros(num_outputs)

    def add(self, outputs: OutputArray, targets: NDArray[np.float32]) -> None:
        """Add a batch; the spread is combined as in Chan et al. 1983."""
        exact = targets.astype(np.float64)
        self.squared += np.square(outputs - exact).sum(axis=0)
        self.absolute += np.abs(outputs - exact).sum(axis=0)
        total, mean = self.count + len(exact), exact.mean(axis=0)
        distance = mean - self._mean
        self.spread += np.square(exact - mean).sum(axis=0) + distance**2 * (self.count * len(exact) / total)
        self._mean += distance * (len(exact) / total)
        self.count = total


class MeanSquaredError(Errors):
    """The mean squared error."""

    def value(self) -> float:
        """Over all outputs."""
        return float(self.squared.mean() / self.count)


class MeanAbsoluteError(Errors):
    """The mean absolute error."""

    def value(self) -> float:
        """Over all outputs."""
        return float(self.absolute.mean() / self.count)


class RSquared(Errors):
    """The coefficient of determination: 1 - Σ(y - ŷ)² / Σ(y - ȳ)², the mean over the outputs."""

    def value(self) -> float | None:
        """None where every target is the same one."""
        known = self.spread > 0
        return float(np.mean(1 - self.squared[known] / self.spread[known])) if known.any() else None


class FlagCounts:
    """How often each flag is rightly set, there and set, int64 [k] each; it is set where the logit is above 0."""

    def __init__(self, num_flags: int) -> None:
        self.right, self.actual, self.predicted = (np.zeros(num_flags, np.int64) for _ in range(3))
        self.equal = np.zeros(num_flags, np.int64)
        self.exact = self.count = 0

    def add(self, outputs: OutputArray, targets: NDArray[np.float32]) -> None:
        """Add a batch."""
        chosen, there = outputs > 0, targets > 0.5
        self.right += (chosen & there).sum(axis=0)
        self.actual += there.sum(axis=0)
        self.predicted += chosen.sum(axis=0)
        self.equal += (chosen == there).sum(axis=0)
        self.exact += int((chosen == there).all(axis=1).sum())
        self.count += len(outputs)


class FlagAccuracy(FlagCounts):
    """The share of all flags that are right."""

    def value(self) -> float:
        """Over all examples and flags."""
        return float(self.equal.mean() / self.count)


class ExactMatch(FlagCounts):
    """The share of the examples all of whose flags are right."""

    def value(self) -> float:
        """Over all examples."""
        return self.exact / self.count


class MicroF1(FlagCounts):
    """F1 of all flags together."""

    def value(self) -> float | None:
        """None if none is there and none is set."""
        return shares_of(2 * self.right.sum(keepdims=True), (self.actual + self.predicted).sum(keepdims=True))[0]


class MacroFlagF1(FlagCounts):
    """The mean F1 of the flags that are there or set."""

    def value(self) -> float | None:
        """All flags count the same."""
        return mean_of(shares_of(2 * self.right, self.actual + self.predicted))


class FlagRecall(FlagCounts):
    """Per flag, how often it is set where it is there."""

    def value(self) -> tuple[float | None, ...]:
        """None for a flag that is never there."""
        return shares_of(self.right, self.actual)


class FlagPrecision(FlagCounts):
    """Per flag, how often it is there where it is set."""

    def value(self) -> tuple[float | None, ...]:
        """None for a flag that is never set."""
        return shares_of(self.right, self.predicted)


class FlagScores(Kept):
    """The mean over the flags of a metric of each one's logits."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self._score = score

    def value(self) -> float | None:
        """Flags that are always or never there do not count."""
        outputs, targets = self.outputs, self.labels
        found = [self._score(outputs[:, flag], targets[:, flag]) for flag in range(outputs.shape[1])]
        return mean_of(tuple(found))


def _scores(score: Score) -> Callable[[int], Accumulator]:
    return lambda _: FlagScores(score)


flag_auc, flag_precision = _scores(roc_auc), _scores(average_precision)
