"""The CNN of McMahan et al. for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.learning.models import Model, image_shape
from fedsim.plugins import PluginOptions, gettext_noop

if TYPE_CHECKING:
    from torch import nn

Channels = Annotated[int, Field(ge=1, le=4096)]


class McMahanCnn(Model):
    """The CNN of McMahan et al. 2017: two 5x5 convolutions with 2x2 max pooling, 1,663,370 parameters on MNIST."""

    title = gettext_noop("CNN – two convolutions, for images")

    class Options(PluginOptions):
        """The sizes of the layers."""

        channels: tuple[Channels, Channels] = Field(
            (32, 64),
            title=gettext_noop("Channels"),
            description=gettext_noop("Channels of the two convolutions, separated by a comma."),
        )
        hidden: Annotated[int, Field(ge=1, le=100_000)] = Field(
            512, title=gettext_noop("Hidden units"), description=gettext_noop("Units of the hidden layer.")
        )

    options: Options

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Two convolutions, each followed by pooling, and one hidden layer."""
        from torch import nn  # noqa: PLC0415 - daemons load this module without torch

        from fedsim.learning.networks import he_initialised  # noqa: PLC0415 - imports torch

        colours, height, width = image_shape("cnn", feature_shape, least=4)
        first, second = self.options.channels
        model = nn.Sequential(
            nn.Unflatten(1, (1, height)) if len(feature_shape) == 2 else nn.Identity(),
            nn.Conv2d(colours, first, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (height // 4) * (width // 4), self.options.hidden),
            nn.ReLU(),
            nn.Linear(self.options.hidden, num_classes),
        )
        return he_initialised(model)
