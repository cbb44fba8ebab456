"""Checks of objectives and optimizers."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim import plugins
from fedsim.learning.objectives import Objective
from fedsim.learning.optimizers import Optimizer
from fedsim.testing.conformance.candidate import Candidate, require, require_reproducible_task

BATCH = 8
CLASSES = 3
LEARNING_RATE = 0.01
STEPS = 5


def _batch() -> tuple[Tensor, Tensor]:
    """Outputs float32 [b, classes] and targets int64 [b]."""
    rng = torch.Generator().manual_seed(3)
    return torch.randn(BATCH, CLASSES, generator=rng, requires_grad=True), torch.arange(BATCH) % CLASSES


def _loss(candidate: Candidate) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs, their loss, and its gradient."""
    objective: Objective = candidate.make()
    outputs, targets = _batch()
    loss = objective.loss(outputs, targets)
    (gradient,) = torch.autograd.grad(loss, [outputs])
    return outputs.detach(), loss.detach(), gradient


def loss_is_a_finite_scalar(candidate: Candidate) -> None:
    """The loss is one finite number with a finite gradient that is not zero."""
    objective: Objective = candidate.make()
    loss = objective.loss(*_batch())
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
    outputs, targets = _batch()[0].detach(), _batch()[1]
    one = objective.loss(outputs, targets)
    two = objective.loss(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    require(torch.allclose(one, two), f"the loss is {float(one):g}, and {float(two):g} with each example twice")


def gradient_reduces_the_loss(candidate: Candidate) -> None:
    """A small step against the gradient reduces the loss."""
    outputs, before, gradient = _loss(candidate)
    with torch.no_grad():
        moved = outputs - 1e-2 * gradient / gradient.norm()
        objective: Objective = candidate.make()
        after = objective.loss(moved, _batch()[1])
    require(float(after) < float(before), f"the loss goes from {float(before):g} to {float(after):g}")


def objective_trains_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(candidate, plugins.OBJECTIVES, "objective")


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
)
OPTIMIZER_CHECKS = (
    a_step_reduces_a_convex_loss,
    steps_are_deterministic,
    clients_share_nothing,
    optimizer_trains_reproducibly,
)
