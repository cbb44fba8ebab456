"""The CIFAR-10 model of McMahan et al."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.learning.models import Model, image_shape
from fedsim.plugins import PluginOptions, gettext_noop

if TYPE_CHECKING:
    from torch import nn

CROP = 24
"""Height and width of the crops."""
Units = Annotated[int, Field(ge=1, le=100_000)]


class CifarCnn(Model):
    """The CIFAR-10 model of McMahan et al. 2017, on 24x24 crops: 1,068,298 parameters with three channels."""

    title = gettext_noop("CIFAR CNN – two convolutions on random crops")

    class Options(PluginOptions):
        """The sizes of the layers."""

        channels: Annotated[int, Field(ge=1, le=4096)] = Field(
            64, title=gettext_noop("Channels"), description=gettext_noop("Channels of both convolutions.")
        )
        hidden: tuple[Units, Units] = Field(
            (384, 192),
            title=gettext_noop("Hidden layers"),
            description=gettext_noop("Units of the two hidden layers, separated by a comma."),
        )

    options: Options

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """A network that crops its images itself."""
        from fedsim.learning.cropped_cnn import CroppedCnn  # noqa: PLC0415 - imports torch
        from fedsim.learning.networks import he_initialised  # noqa: PLC0415 - imports torch

        colours, _, _ = image_shape("cifar_cnn", feature_shape, least=CROP)
        return he_initialised(CroppedCnn(colours, self.options.channels, self.options.hidden, CROP, num_classes))
