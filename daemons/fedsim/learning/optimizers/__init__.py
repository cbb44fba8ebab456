"""Optimizers: how a client's parameters follow the gradients. One class in one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from fedsim.plugins import Plugin, PluginOptions, gettext_noop
from fedsim.settings import TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

Step = Callable[[Sequence["Tensor"]], None]
"""Takes one step along the gradients, one for each parameter; it may change them."""


class Optimizer(Plugin):
    """The base of all client optimizers."""

    def start(self, parameters: Sequence[Tensor], learning_rate: float) -> Step:
        """Begin one client's training in one round.

        Args:
            parameters: outside of autograd; a step changes them in place.
            learning_rate: the task's `local_learning_rate`.

        Returns:
            A function that takes one step; what it remembers ends with the client's round.
        """
        raise NotImplementedError

    def effective_steps(self, num_steps: int) -> float | None:  # noqa: ARG002
        """How many plain gradient steps so many steps count for; None where steps are no sums of gradients."""
        return None


class RegularizedOptimizer(Optimizer):
    """An optimizer that can clip gradients and decay weights before its step.

    Attributes:
        decays_gradients: whether `regularized` adds the weight decay to the gradients.
    """

    decays_gradients: ClassVar[bool] = True

    class Options(PluginOptions):
        """Weight decay and clipping."""

        weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(
            0.0,
            title=gettext_noop("Weight decay λ"),
            description=gettext_noop("How strongly parameters are pulled to zero."),
        )
        clip_norm: Annotated[float, Field(ge=0, le=1e9)] = Field(
            0.0,
            title=gettext_noop("Gradient clipping"),
            description=gettext_noop(
                "Longest gradient of all parameters together (L2); a longer one is shortened. 0: any."
            ),
        )

    options: Options

    def regularized(self, gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients, changed in place: clipped by their common norm, then with the weight decay λ·w added."""
        import torch  # noqa: PLC0415 - daemons read the options without torch

        options = self.options
        if options.clip_norm:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in gradients]))
            factor = torch.clamp(options.clip_norm / norm, max=1.0)
            for gradient in gradients:
                gradient.mul_(factor)
        if options.weight_decay and self.decays_gradients:
            for gradient, parameter in zip(gradients, parameters, strict=True):
                gradient.add_(parameter, alpha=options.weight_decay)
        return gradients


def make_optimizer(settings: TaskSettings) -> Optimizer:
    """The optimizer that the settings name; raises `BadInput` if it cannot be made."""
    optimizer: Optimizer = settings.plugin("optimizer")
    return optimizer
