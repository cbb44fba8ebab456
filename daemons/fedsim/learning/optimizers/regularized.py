"""The base of optimizers that clip gradients and decay weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from fedsim.learning.optimizers import Optimizer
from fedsim.plugins import PluginOptions, gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


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
