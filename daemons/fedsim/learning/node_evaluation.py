"""The test of a model on a node's own held-out examples, with confidence intervals by bootstrap."""

from __future__ import annotations

from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.data_schema import NAMED_TARGETS, Targets
from fedsim.errors import BadInput
from fedsim.evaluation import Estimate
from fedsim.learning.evaluate import model_outputs
from fedsim.learning.examples import Examples
from fedsim.learning.metrics import MetricSet
from fedsim.learning.objectives import Objective

RESAMPLES = 200
COVERAGE = 0.95
MOST_NUMBERS = 2**24
"""Outputs of more numbers than this are not resampled: it would take longer than the test."""


def evaluate_with_intervals(
    model: nn.Module, examples: Examples, objective: Objective, seed: tuple[int, ...]
) -> dict[str, Estimate]:
    """Test a model on all examples; each metric that is one number has a percentile interval.

    Args:
        model: in any mode; it is left in evaluation mode.
        examples: n of them, at least one.
        objective: gives the loss and the metrics.
        seed: of the resamples: n examples with replacement, `RESAMPLES` times (Efron 1979). Equal seeds, models and
            examples give equal numbers.

    Raises:
        BadInput: a label is not one of the model's.
    """
    targets = torch.from_numpy(examples.labels.copy())
    return estimates(model_outputs(model, examples), targets, examples.targets, objective, seed)


def estimates(
    outputs: Tensor, targets: Tensor, kind: Targets, objective: Objective, seed: tuple[int, ...]
) -> dict[str, Estimate]:
    """As `evaluate_with_intervals`, from outputs (float64 [n, …]) and the targets of the same examples."""
    rows = objective.rows(outputs, targets)
    num_classes = rows[0].shape[1]
    if kind not in NAMED_TARGETS and not 0 <= rows[1].min() <= rows[1].max() < num_classes:
        raise BadInput(f"held-out examples have labels that are not among the {num_classes} classes of the model")
    values = _values(objective, outputs, targets)
    if outputs.numel() > MOST_NUMBERS:
        return {name: Estimate(value=value) for name, value in values.items()}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(RESAMPLES):
        chosen = torch.from_numpy(rng.integers(len(targets), size=len(targets)))
        for name, value in _values(objective, outputs[chosen], targets[chosen]).items():
            if value is not None:
                drawn[name].append(value)
    return {name: _estimate(value, drawn[name]) for name, value in values.items()}


def _estimate(value: float | None, drawn: list[float]) -> Estimate:
    if value is None or len(drawn) < RESAMPLES:  # not defined in some resamples, such as without a rare class
        return Estimate(value=value)
    edge = (1 - COVERAGE) / 2
    low, high = np.quantile(np.array(drawn), [edge, 1 - edge]).tolist()
    return Estimate(value=value, low=low, high=high)


def _values(objective: Objective, outputs: Tensor, targets: Tensor) -> dict[str, float | None]:
    """The loss, and the metrics that are one number."""
    logits, rows = objective.rows(outputs, targets)
    found = {"loss": _finite(float(objective.loss(outputs, targets)))}
    return found | _metrics(objective.metrics, logits.numpy(), rows.numpy())


def _metrics(metrics: MetricSet, outputs: NDArray[np.float64], rows: NDArray[np.generic]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for metric in metrics.metrics:
        if metric.accumulator is None or not metric.one_number:
            continue
        if (accumulator := metric.accumulator(outputs.shape[1])) is None:
            continue
        accumulator.add(outputs, rows)
        value = accumulator.value()
        found[metric.name] = None if isinstance(value, tuple) else _finite(value)
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
