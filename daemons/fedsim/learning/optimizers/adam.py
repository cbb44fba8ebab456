"""Adam."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.learning.optimizers import Step
from fedsim.learning.optimizers.regularized import RegularizedOptimizer
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class Adam(RegularizedOptimizer):
    """Adam (Kingma and Ba 2015, algorithm 1); its moments begin anew in each round.

    Weight decay is added to the gradient, as a penalty on the loss would be.
    """

    title = gettext_noop("Adam – steps of each coordinate's own size")

    class Options(RegularizedOptimizer.Options):
        """The decay of the moments, and what every optimizer has."""

        beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.9, title=gettext_noop("β1"), description=gettext_noop("The share of the first moment that is kept.")
        )
        beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.999, title=gettext_noop("β2"), description=gettext_noop("The share of the second moment that is kept.")
        )
        epsilon: Annotated[float, Field(gt=0, le=1)] = Field(
            1e-8,
            title=gettext_noop("ε"),
            description=gettext_noop("Added to the root of the second moment, by which a step is divided."),
        )

    options: Options

    def start(self, parameters: Sequence[Tensor], learning_rate: float) -> Step:
        """Keeps two moments of each parameter from step to step."""
        beta1, beta2, epsilon = self.options.beta1, self.options.beta2, self.options.epsilon
        first = [parameter.new_zeros(parameter.shape) for parameter in parameters]
        second = [parameter.new_zeros(parameter.shape) for parameter in parameters]
        taken = 0

        def step(gradients: Sequence[Tensor]) -> None:
            nonlocal taken
            taken += 1
            gradients = self.regularized(gradients, parameters)
            self.decay(parameters, learning_rate)
            size, scale = learning_rate / (1 - beta1**taken), sqrt(1 - beta2**taken)
            for parameter, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(beta1).add_(gradient, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                parameter.addcdiv_(m, v.sqrt().div_(scale).add_(epsilon), value=-size)

        return step

    def decay(self, parameters: Sequence[Tensor], learning_rate: float) -> None:
        """What a step does to the parameters besides following the moments."""
