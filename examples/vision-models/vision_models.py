"""ResNet-18 and U-Net as models of fedsim: an example of a package with networks that have batch normalisation."""

from typing import Literal

from pydantic import Field

from fedsim.learning.models import Model, image_shape
from fedsim.plugins import PluginOptions


class ResNet18(Model):
    """ResNet-18 (He et al. 2016, table 1), with the names that torchvision gives its parameters."""

    title = "ResNet-18"

    class Options(PluginOptions):
        """The size of the network."""

        width: int = Field(
            64, ge=1, le=1024, title="Width", description="Channels of the first stage; later ones double."
        )
        stem: Literal["large", "small"] = Field(
            "large",
            title="Stem",
            description="large: 7x7 with stride 2 and pooling, for photographs; small: 3x3, for images like CIFAR's.",
        )

    def build(self, feature_shape, num_classes):
        from vision_resnet import ResNet  # noqa: PLC0415 - daemons load this module without torch

        channels, _, _ = image_shape("resnet18", feature_shape, least=8)
        return ResNet(channels, num_classes, self.options.width, small=self.options.stem == "small")


class UNet(Model):
    """U-Net (Ronneberger et al. 2015), padded, so that each pixel of the image gets logits."""

    title = "U-Net"

    class Options(PluginOptions):
        """The size of the network."""

        width: int = Field(
            64, ge=1, le=1024, title="Width", description="Channels at full size; each level doubles them."
        )
        depth: int = Field(4, ge=1, le=6, title="Depth", description="How often the image is halved.")

    def build(self, feature_shape, num_classes):
        from vision_unet import UShaped  # noqa: PLC0415 - daemons load this module without torch

        channels, _, _ = image_shape("unet", feature_shape, least=2**self.options.depth)
        return UShaped(channels, num_classes, self.options.width, self.options.depth)
