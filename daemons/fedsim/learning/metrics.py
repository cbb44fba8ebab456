"""Metrics: what an evaluation computes, and how pages, tables and logs show it. A new metric is added only here.

The web reads the descriptions, so this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsim.plugins import gettext_noop

# Metrics by name, and per-class metrics by name with a value for each class, or a row of values for each class and each
# class that was predicted; None: not defined (an absent class).
MetricValues = dict[str, float | None]
ClassValue = float | tuple[float, ...] | None
ClassValues = dict[str, tuple[ClassValue, ...]]
OutputArray = NDArray[np.float64]
TRAIN_PREFIX = "train_"
ROUND_COLUMNS = (
    "num_examples",
    "cohort_size",
    "missing",
    "missing_share",
    "bytes_sent",
    "bytes_received",
    "finished_at",
    "digest",
)
"""Fields of a round's record that are columns of a CSV file of rounds, besides its metrics."""


class MetricFormat(StrEnum):
    """How a metric's value is written."""

    SHARE = "share"  # between 0 and 1, as a percentage
    NUMBER = "number"


class Accumulator(Protocol):
    """Computes a metric over the batches of a test set."""

    def add(self, outputs: OutputArray, labels: Any) -> None:
        """Add a batch: the model's outputs float64 [m, k], targets [m] or [m, k]; see `Objective.rows`."""

    def value(self) -> float | tuple[ClassValue, ...] | None:
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
        by_prediction: whether that is a row, with a value for each class that was predicted.
        accumulator: makes an accumulator for k outputs, such as the number of classes; returns None where the metric
            does not apply. None for the loss, which comes from the objective, and for metrics that clients report.
    """

    name: str
    label: str
    higher_is_better: bool | None = None
    format: MetricFormat = MetricFormat.NUMBER
    per_class: bool = False
    accumulator: Callable[[int], Accumulator | None] | None = None
    by_prediction: bool = False

    @property
    def one_number(self) -> bool:
        """Whether each test gives one value of it."""
        return not self.per_class and not self.name.startswith(TRAIN_PREFIX)


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


def roc_auc(scores: OutputArray, labels: NDArray[np.generic]) -> float | None:
    """Area under the ROC curve by ranks (Mann-Whitney); equal scores share a rank.

    None if a class is absent, or a score is not a number.
    """
    positives = int((labels == 1).sum())
    negatives = len(labels) - positives
    if not positives or not negatives or np.isnan(scores).any():
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]
    above = float(ranks[labels == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def average_precision(scores: OutputArray, labels: NDArray[np.generic]) -> float | None:
    """Σ (R_n - R_{n-1})·P_n over the thresholds, the highest first; equal scores are one.

    None if no label is 1, or a score is not a number.
    """
    positives = int((labels == 1).sum())
    if not positives or np.isnan(scores).any():
        return None
    values, place = np.unique(-scores, return_inverse=True)
    found = np.cumsum(np.bincount(place, labels == 1, minlength=len(values)))
    chosen = np.cumsum(np.bincount(place, minlength=len(values)))
    return float(np.sum(np.diff(found, prepend=0.0) / positives * (found / chosen)))


LOSS = Metric("loss", gettext_noop("Loss"), False)
TRAIN_LOSS = Metric("train_loss", gettext_noop("Training loss"), False)
"""Metrics of every objective: the loss on the test set, and what clients report of their training."""

NOT_DECLARED = MetricSet((), headline_name="loss")
"""For tasks whose objective is not installed: metrics are shown by their names."""


def flat_node_values(tests: Mapping[str, Any]) -> dict[tuple[str | int, ...], float | None]:
    """The tests of a round on the nodes' own data one by one, as columns of a table: by node and metric."""
    nodes: Mapping[str, Mapping[str, Any]] = tests.get("nodes", {})
    return {("node", node, name): one[0] for node, found in nodes.items() for name, one in found["metrics"].items()}


CONTRIBUTED = {"loss": "train_loss", "norm": "update_norm", "distance": "update_distance", "cosine": "update_cosine"}
"""The figures of a node's training that tables of rounds have, and what they call them."""


def flat_contributions(contributions: Mapping[str, Any]) -> dict[tuple[str | int, ...], float | None]:
    """What nodes contributed to a round one by one, as columns of a table: by node and figure."""
    nodes: Mapping[str, Mapping[str, Any]] = contributions.get("nodes", {})
    return {
        ("node", node, column): found[name] for node, found in nodes.items() for name, column in CONTRIBUTED.items()
    }


def flat_class_values(values: Mapping[str, Sequence[Any]]) -> dict[tuple[str | int, ...], float | None]:
    """Per-class metrics one by one, as columns of a table: by name and class, in a row also by the predicted class."""
    found: dict[tuple[str | int, ...], float | None] = {}
    for name, of_classes in values.items():
        for label, value in enumerate(of_classes):
            if isinstance(value, list | tuple):
                found |= {(name, label, predicted): share for predicted, share in enumerate(value)}
            else:
                found[name, label] = value
    return found
