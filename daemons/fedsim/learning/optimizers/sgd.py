"""Stochastic gradient descent, plain or with momentum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from fedsim.learning.optimizers import Step
from fedsim.learning.optimizers.regularized import RegularizedOptimizer
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class Sgd(RegularizedOptimizer):
    """Stochastic gradient descent: v ← μ·v + g, w ← w - η·v; without momentum w ← w - η·g."""

    title = gettext_noop("SGD – gradient steps, with momentum if wanted")

    class Options(RegularizedOptimizer.Options):
        """Momentum, and what every optimizer has."""

        momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.0,
            title=gettext_noop("Momentum μ"),
            description=gettext_noop("The share of the last step that is kept; it begins anew in each round."),
        )
        nesterov: bool = Field(
            False,
            title=gettext_noop("Nesterov momentum"),
            description=gettext_noop("Follow the gradient and the new momentum together."),
        )

        @model_validator(mode="after")
        def _nesterov_of_something(self) -> Sgd.Options:
            if self.nesterov and not self.momentum:
                raise ValueError("nesterov needs a momentum above 0")
            return self

    options: Options

    @property
    def plain(self) -> bool:
        """Whether a step is w ← w - η·g and nothing else."""
        return self.options == type(self.options)()

    def effective_steps(self, num_steps: int) -> float | None:
        """How often each gradient counts, summed: τ without momentum (Wang et al. 2020, section 3).

        With momentum ‖a‖ = (τ - μ·(1 - μ^τ) / (1 - μ)) / (1 - μ), which Nesterov's does not follow.
        """
        if self.options.nesterov:
            return None
        momentum = self.options.momentum
        tail = momentum * (1 - momentum**num_steps) / (1 - momentum)
        return (num_steps - tail) / (1 - momentum)

    def start(self, parameters: Sequence[Tensor], learning_rate: float) -> Step:
        """Keeps the momentum from step to step."""
        momentum, nesterov = self.options.momentum, self.options.nesterov
        velocities: list[Tensor] = []

        def step(gradients: Sequence[Tensor]) -> None:
            gradients = self.regularized(gradients, parameters)
            if momentum:
                if not velocities:
                    velocities.extend(gradient.clone() for gradient in gradients)
                else:
                    for velocity, gradient in zip(velocities, gradients, strict=True):
                        velocity.mul_(momentum).add_(gradient)
                if nesterov:
                    for gradient, velocity in zip(gradients, velocities, strict=True):
                        gradient.add_(velocity, alpha=momentum)
                else:
                    gradients = velocities
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=-learning_rate)

        return step
