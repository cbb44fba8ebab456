"""Evaluation of a model on a test set, and predictions for new examples; batches bound the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.data_schema import NAMED_TARGETS, Targets
from fedsim.errors import BadInput
from fedsim.learning.examples import Examples, FloatArray
from fedsim.learning.metrics import Accumulator, ClassValues, MetricSet, MetricValues
from fedsim.learning.networks import Prepares, input_type
from fedsim.learning.objectives import Objective
from fedsim.learning.objectives.classification import Classification

BATCH = 500


@dataclass(frozen=True)
class Evaluation:
    """The result of a test on `num_examples` examples: metrics by name, and per-class metrics by name."""

    num_examples: int
    metrics: MetricValues
    class_metrics: ClassValues


def evaluate(
    model: nn.Module, examples: Examples, *, objective: Objective | None = None, batch_size: int = BATCH
) -> Evaluation:
    """Test a model, on the device of its parameters; it is left in evaluation mode.

    The objective (None: classification) gives the loss and the metrics. A value that is not finite becomes None.

    Raises:
        BadInput: there is no example, one is of a class that the model does not know, or the targets are of another
            kind than the objective's.
    """
    objective = objective or Classification()
    labels = examples.labels
    if examples.targets != objective.targets:
        raise BadInput(f"the test set {objective.problem(examples.targets, examples.feature_shape, 0)}")
    if not len(labels):
        raise BadInput("the test set is empty; give it at least one example")
    loss = 0.0
    accumulators: dict[str, Accumulator] = {}
    for batch in _batches(len(labels), batch_size):
        outputs = _outputs(model, examples.take(batch)).double().cpu()
        targets = torch.from_numpy(labels[batch].copy())
        logits, rows = objective.rows(outputs, targets)
        num_classes = logits.shape[1]
        if examples.targets not in NAMED_TARGETS and not 0 <= rows.min() <= rows.max() < num_classes:
            raise BadInput(
                f"the test set has labels from {labels.min()} to {labels.max()}, the model knows the classes 0 to "
                f"{num_classes - 1}: use the test set of the data that it is trained on"
            )
        if batch.start == 0:
            accumulators = _accumulators(objective.metrics, num_classes)
        loss += float(objective.loss(outputs, targets)) * len(targets)
        with np.errstate(over="ignore", invalid="ignore"):  # of a model that diverges; its values become None
            for accumulator in accumulators.values():
                accumulator.add(logits.numpy(), rows.numpy())
    values: MetricValues = {"loss": _finite(loss / len(labels))}
    class_values: ClassValues = {}
    for name, accumulator in accumulators.items():
        with np.errstate(over="ignore", invalid="ignore"):
            value = accumulator.value()
        if isinstance(value, tuple):
            class_values[name] = tuple(item if isinstance(item, tuple) else _finite(item) for item in value)
        else:
            values[name] = _finite(value)
    return Evaluation(len(labels), values, class_values)


def model_outputs(model: nn.Module, examples: Examples, *, batch_size: int = BATCH) -> Tensor:
    """The outputs for all examples, float64 [n, …] on the CPU; the model is left in evaluation mode."""
    parts = [_outputs(model, examples.take(batch)).double().cpu() for batch in _batches(len(examples), batch_size)]
    return torch.cat(parts)


def _accumulators(metrics: MetricSet, num_classes: int) -> dict[str, Accumulator]:
    made = {metric.name: metric.accumulator(num_classes) for metric in metrics.metrics if metric.accumulator}
    return {name: accumulator for name, accumulator in made.items() if accumulator is not None}


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def predict(
    model: nn.Module, features: NDArray[Any], targets: Targets = "classes", *, batch_size: int = BATCH
) -> NDArray[Any]:
    """What a model predicts for features float32 [n, *shape] (`Examples.take`).

    Returns:
        Of classes and flags the probability of each, float32 [n, k]; of numbers these, float32 [n, k]; of tokens and
        masks the most probable class at each place, int64 [n, length] or [n, height, width].
    """
    parts = [
        _predicted(_outputs(model, features[batch].astype(np.float32)).float(), targets).cpu().numpy()
        for batch in _batches(len(features), batch_size)
    ]
    return np.concatenate(parts)


def _predicted(outputs: Tensor, targets: Targets) -> Tensor:
    match targets:
        case "classes":
            return torch.softmax(outputs, dim=1)
        case "flags":
            return torch.sigmoid(outputs)
        case "numbers":
            return outputs
        case "tokens":
            return outputs.argmax(dim=-1)
        case "mask":
            return outputs.argmax(dim=1)


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@torch.no_grad()
def _outputs(model: nn.Module, features: FloatArray) -> Tensor:
    model.eval()
    inputs = torch.from_numpy(features).to(next(model.parameters()).device)
    prepared = model.prepare(inputs, None) if isinstance(model, Prepares) else inputs
    outputs: Tensor = model(prepared.to(input_type(model)))
    return outputs
