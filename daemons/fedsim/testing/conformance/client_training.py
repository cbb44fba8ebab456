"""Checks of objectives and optimizers."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import plugins
from fedsim.data_schema import Targets
from fedsim.learning.evaluate import evaluate
from fedsim.learning.examples import DataSet, Examples, TargetArray, made_up_targets
from fedsim.learning.objectives import Objective
from fedsim.learning.optimizers import Optimizer
from fedsim.testing.conformance.candidate import Candidate, require, require_reproducible_task, small_data

BATCH = 8
OUTPUTS = 2
"""Classes, numbers or flags, as few as every objective takes."""
FEATURES: dict[Targets, tuple[int, ...]] = {
    "classes": (6,),
    "tokens": (6,),
    "mask": (4, 3),
    "numbers": (6,),
    "flags": (6,),
}
LEARNING_RATE = 0.01
STEPS = 5


def _batch(objective: Objective) -> tuple[Tensor, Tensor]:
    """Outputs float32 [b, …] and targets of the objective's kind; classes are int64 [b]."""
    rng, shape = torch.Generator().manual_seed(3), FEATURES[objective.targets]
    outputs = torch.randn(BATCH, *objective.output_shape(shape, OUTPUTS), generator=rng, requires_grad=True)
    if objective.targets == "classes":
        return outputs, torch.arange(BATCH) % OUTPUTS
    return outputs, torch.from_numpy(_targets(objective, BATCH))


def _targets(objective: Objective, count: int) -> TargetArray:
    """Made-up targets of the objective's kind."""
    return made_up_targets(np.random.default_rng(5), objective.targets, count, FEATURES[objective.targets], OUTPUTS)


def _data(objective: Objective) -> DataSet:
    """A small data set of the objective's kind."""
    features = small_data(FEATURES[objective.targets]).train.features
    if objective.targets == "classes":
        return DataSet(Examples(features, np.arange(len(features)) % OUTPUTS), None, OUTPUTS)
    labels = _targets(objective, len(features))
    return DataSet(Examples(features, labels, targets=objective.targets), None, OUTPUTS)


def _loss(candidate: Candidate) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs, their loss, and its gradient."""
    objective: Objective = candidate.make()
    outputs, targets = _batch(objective)
    loss = objective.loss(outputs, targets)
    (gradient,) = torch.autograd.grad(loss, [outputs])
    return outputs.detach(), loss.detach(), gradient


def loss_is_a_finite_scalar(candidate: Candidate) -> None:
    """The loss is one finite number with a finite gradient that is not zero."""
    objective: Objective = candidate.make()
    loss = objective.loss(*_batch(objective))
    require(loss.dim() == 0, f"the loss has the shape {list(loss.shape)}; it must be a scalar")
    _, value, gradient = _loss(candidate)
    require(bool(torch.isfinite(value)), f"the loss is {float(value)}")
    require(bool(torch.isfinite(gradient).all()), "the gradient is not finite")
    require(bool(gradient.any()), "the gradient is zero")


def loss_is_deterministic(candidate: Candidate) -> None:
    """The same outputs and targets give the same loss and gradient."""
    (_, one, gradient), (_, two, other) = _loss(candidate), _loss(candidate)
    require(torch.equal(one, two) and torch.equal(gradient, other), "the same batch gave two different losses")


def loss_is_a_mean(candidate: Candidate) -> None:
    """A batch that holds each example twice has the same loss: it does not grow with the batch."""
    objective: Objective = candidate.make()
    outputs, targets = _batch(objective)[0].detach(), _batch(objective)[1]
    one = objective.loss(outputs, targets)
    two = objective.loss(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    require(torch.allclose(one, two), f"the loss is {float(one):g}, and {float(two):g} with each example twice")


def gradient_reduces_the_loss(candidate: Candidate) -> None:
    """A small step against the gradient reduces the loss."""
    outputs, before, gradient = _loss(candidate)
    with torch.no_grad():
        moved = outputs - 1e-2 * gradient / gradient.norm()
        objective: Objective = candidate.make()
        after = objective.loss(moved, _batch(objective)[1])
    require(float(after) < float(before), f"the loss goes from {float(before):g} to {float(after):g}")


def objective_trains_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    objective: Objective = candidate.make()

    def build(feature_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        shape = objective.output_shape(feature_shape, num_outputs)
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(feature_shape), prod(shape)), nn.Unflatten(1, shape))

    require_reproducible_task(candidate, plugins.OBJECTIVES, "objective", data=_data(objective), network=build)


def metrics_do_not_depend_on_batches(candidate: Candidate) -> None:
    """Each metric that a test computes is a number, or one for each class, whatever the size of the batches."""
    objective: Objective = candidate.make()
    data = _data(objective).train
    outputs = torch.randn(
        len(data), *objective.output_shape(data.feature_shape, OUTPUTS), generator=torch.Generator().manual_seed(1)
    )
    names = {metric.name for metric in objective.metrics.metrics}
    require(objective.metrics.headline_name in names, f"the headline {objective.metrics.headline_name} is no metric")
    whole, parts = (evaluate(_Recorded(outputs), data, objective=objective, batch_size=size) for size in (1000, 7))
    for one, two in ((whole.metrics, parts.metrics), (whole.class_metrics, parts.class_metrics)):
        require(one.keys() <= names, f"the metrics {', '.join(sorted(one.keys() - names))} are not described")
        for name, value in one.items():
            alike = np.allclose(_plain(value), _plain(two[name]), rtol=1e-9, atol=1e-12, equal_nan=True)
            require(alike, f"{name} is {value} of one batch, {two[name]} of several")


class _Recorded(nn.Module):
    """Gives recorded outputs, batch after batch."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self._outputs, self._next = outputs, 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """The next ones."""
        self._next += len(features)
        return self._outputs[self._next - len(features) : self._next]


def _plain(value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One or several numbers; None is NaN."""
    return np.array(value, np.float64)


def _parameters(seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, generator=rng), torch.randn(5, generator=rng)]


def _bowl(parameters: list[Tensor]) -> float:
    """A convex loss: half of the squared distance from 3; its gradient is w - 3."""
    return sum(float(((parameter - 3.0) ** 2).sum()) / 2 for parameter in parameters)


def _train(optimizer: Optimizer, seed: int, steps: int = STEPS) -> list[Tensor]:
    """A client's parameters after some steps on the bowl."""
    parameters = _parameters(seed)
    step = optimizer.start(parameters, LEARNING_RATE)
    for _ in range(steps):
        step([parameter - 3.0 for parameter in parameters])
    return parameters


def _equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, two, strict=True))


def a_step_reduces_a_convex_loss(candidate: Candidate) -> None:
    """A step changes the parameters in place, and reduces a convex loss."""
    before, after = _bowl(_parameters(1)), _bowl(_train(candidate.make(), 1, steps=1))
    require(after < before, f"one step brings a convex loss from {before:g} to {after:g}")


def steps_are_deterministic(candidate: Candidate) -> None:
    """The same parameters and gradients give the same bytes."""
    require(_equal(_train(candidate.make(), 1), _train(candidate.make(), 1)), "the same steps gave different bytes")


def clients_share_nothing(candidate: Candidate) -> None:
    """What an optimizer remembers begins with `start`, and is not shared with other clients."""
    optimizer: Optimizer = candidate.make()
    alone = _train(candidate.make(), 2)
    _train(optimizer, 1)
    require(_equal(_train(optimizer, 2), alone), "a client's training depends on the client before it")
    first, second = _parameters(1), _parameters(2)
    first_step, second_step = optimizer.start(first, LEARNING_RATE), optimizer.start(second, LEARNING_RATE)
    for _ in range(STEPS):
        first_step([parameter - 3.0 for parameter in first])
        second_step([parameter - 3.0 for parameter in second])
    require(_equal(second, alone), "two clients that train at the same time influence each other")


def optimizer_trains_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(candidate, plugins.OPTIMIZERS, "optimizer")


OBJECTIVE_CHECKS = (
    loss_is_a_finite_scalar,
    loss_is_deterministic,
    loss_is_a_mean,
    gradient_reduces_the_loss,
    objective_trains_reproducibly,
    metrics_do_not_depend_on_batches,
)
OPTIMIZER_CHECKS = (
    a_step_reduces_a_convex_loss,
    steps_are_deterministic,
    clients_share_nothing,
    optimizer_trains_reproducibly,
)
