"""Plain stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsim.learning.optimizers import Optimizer, Step
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class Sgd(Optimizer):
    """Stochastic gradient descent without momentum: w ← w - η·g."""

    title = gettext_noop("SGD – plain gradient steps")

    def start(self, parameters: Sequence[Tensor], learning_rate: float) -> Step:
        """Keeps nothing from step to step."""

        def step(gradients: Sequence[Tensor]) -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=-learning_rate)

        return step
