"""Multi-layer perceptrons."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.learning.models import Model
from fedsim.plugins import PluginOptions, gettext_noop

if TYPE_CHECKING:
    from torch import nn

Units = Annotated[int, Field(ge=1, le=100_000)]
HiddenLayers = Annotated[tuple[Units, ...], Field(min_length=1, max_length=20)]


class Mlp(Model):
    """Hidden layers of rectified units, for tables."""

    title = gettext_noop("MLP – hidden layers of 64 and 32, for tables")

    class Options(PluginOptions):
        """The hidden layers."""

        hidden: HiddenLayers = Field(
            (64, 32),
            title=gettext_noop("Hidden layers"),
            description=gettext_noop("Units of each hidden layer, separated by commas."),
        )

    options: Options

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Linear layers with rectifiers between them, on the flat example."""
        from torch import nn  # noqa: PLC0415 - daemons load this module without torch

        from fedsim.learning.networks import he_initialised  # noqa: PLC0415 - imports torch

        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise((prod(feature_shape), *self.options.hidden)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return he_initialised(nn.Sequential(*layers, nn.Linear(self.options.hidden[-1], num_classes)))
