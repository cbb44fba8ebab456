"""The clients' optimizers against PyTorch's own, and what a strategy demands of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fedsim.errors import BadInput
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.optimizers import make_optimizer
from fedsim.learning.optimizers.sgd import Sgd
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import make_strategy
from fedsim.settings import TaskSettings
from fedsim.testing.conformance.candidate import small_data

pytestmark = pytest.mark.usefixtures("deterministic_torch")
RATE = 0.05


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in ((4, 3), (3,), ())]


def loss(values: list[torch.Tensor], number: int) -> torch.Tensor:
    """Another one in each step, with a minimum away from zero."""
    return sum(((value - 0.3 * (number + 1)) ** 4).sum() for value in values)  # type: ignore[return-value]


def ours(name: str, options: dict[str, Any], steps: int) -> list[torch.Tensor]:
    values = parameters()
    step = make_optimizer(TaskSettings(optimizer=name, optimizer_options=options)).start(values, RATE)
    for number in range(steps):
        tracked = [value.clone().requires_grad_() for value in values]
        step(torch.autograd.grad(loss(tracked, number), tracked))
    return values


def theirs(optimizer: type[torch.optim.Optimizer], steps: int, clip: float = 0.0, **options: Any) -> list[torch.Tensor]:
    values = [torch.nn.Parameter(value) for value in parameters()]
    stepper = optimizer(values, lr=RATE, **options)
    for number in range(steps):
        stepper.zero_grad()
        loss(values, number).backward()  # type: ignore[arg-type]
        if clip:
            torch.nn.utils.clip_grad_norm_(values, clip)
        stepper.step()
    return [value.detach() for value in values]


@pytest.mark.parametrize(
    ("name", "options", "optimizer", "same"),
    [
        ("sgd", {}, torch.optim.SGD, {}),
        ("sgd", {"momentum": 0.8}, torch.optim.SGD, {"momentum": 0.8}),
        ("sgd", {"momentum": 0.8, "nesterov": True}, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("sgd", {"momentum": 0.5, "weight_decay": 0.2}, torch.optim.SGD, {"momentum": 0.5, "weight_decay": 0.2}),
        ("sgd", {"clip_norm": 0.5}, torch.optim.SGD, {"clip": 0.5}),
        ("adam", {}, torch.optim.Adam, {}),
        ("adam", {"beta1": 0.7, "beta2": 0.9, "epsilon": 1e-3}, torch.optim.Adam, {"betas": (0.7, 0.9), "eps": 1e-3}),
        ("adam", {"weight_decay": 0.2, "clip_norm": 2.0}, torch.optim.Adam, {"weight_decay": 0.2, "clip": 2.0}),
        ("adamw", {}, torch.optim.AdamW, {}),
        ("adamw", {"weight_decay": 0.3}, torch.optim.AdamW, {"weight_decay": 0.3}),
    ],
    ids=str,
)
def test_an_optimizer_steps_as_pytorchs(
    name: str, options: dict[str, Any], optimizer: type[torch.optim.Optimizer], same: dict[str, Any]
) -> None:
    for steps in (1, 2, 7):
        for one, other in zip(ours(name, options, steps), theirs(optimizer, steps, **same), strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_effective_steps_are_how_often_gradients_count(momentum: float) -> None:
    optimizer = Sgd(Sgd.Options(momentum=momentum))
    for steps in (1, 2, 9):
        value = torch.zeros(1)
        step = optimizer.start([value], 1.0)
        for _ in range(steps):
            step([torch.ones(1)])
        assert optimizer.effective_steps(steps) == pytest.approx(-float(value), rel=1e-6)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValidationError, match="nesterov needs a momentum above 0"):
        Sgd.Options(nesterov=True)


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
@pytest.mark.parametrize(
    ("optimizer", "options"), [("adam", {}), ("adamw", {}), ("sgd", {"momentum": 0.5, "nesterov": True})]
)
def test_a_strategy_that_adds_up_gradients_refuses_other_steps(
    strategy: str, optimizer: str, options: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=f"{strategy} computes with the gradients .* of {optimizer} .*: choose sgd"):
        make_strategy(TaskSettings(strategy=strategy, optimizer=optimizer, optimizer_options=options))
    make_strategy(TaskSettings(strategy=strategy, optimizer_options={"momentum": 0.5}))
    make_strategy(TaskSettings(optimizer=optimizer, optimizer_options=options))


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"clip_norm": 0.1}])
def test_the_batched_engine_leaves_all_but_plain_steps_to_the_sequential_one(options: dict[str, float]) -> None:
    settings = TaskSettings(
        model="logistic", partition="iid", num_clients=4, num_rounds=2, optimizer_options=options, local_epochs=2
    )
    digests = {simulate(settings, small_data(), engine=engine).digest for engine in (BatchedEngine, SequentialEngine)}
    plain = simulate(settings.model_copy(update={"optimizer_options": {}}), small_data()).digest
    assert len(digests) == 1
    assert plain not in digests
