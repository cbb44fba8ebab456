"""AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.learning.optimizers.adam import Adam
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import Tensor


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2): w ← w - η·λ·w besides Adam's step."""

    title = gettext_noop("AdamW – Adam with decoupled weight decay")
    decays_gradients = False

    class Options(Adam.Options):
        """As Adam's, with a weight decay that is usual here."""

        weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(
            0.01,
            title=gettext_noop("Weight decay λ"),
            description=gettext_noop("How strongly parameters are pulled to zero."),
        )

    options: Options

    def decay(self, parameters: Sequence[Tensor], learning_rate: float) -> None:
        """Pull all to zero: w ← w - η·λ·w."""
        for parameter in parameters:
            parameter.mul_(1 - learning_rate * self.options.weight_decay)
