"""The character LSTM of McMahan et al."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.models import Model
from fedsim.plugins import PluginOptions, gettext_noop

if TYPE_CHECKING:
    from torch import nn


class ShakespeareLstm(Model):
    """The Shakespeare model of McMahan et al. 2017: characters in 8 dimensions, two LSTM layers of 256, a softmax.

    With N symbols it has 798,720 + 265 N parameters, of which 2,048 are second biases that torch's LSTM has: 866,560
    for the 256 values of a byte, where the paper counts 866,578. The paper trains on 80 characters at a time.
    """

    title = gettext_noop("Shakespeare LSTM – two LSTM layers, for characters")
    targets = "tokens"

    class Options(PluginOptions):
        """The sizes of the layers."""

        embedding: Annotated[int, Field(ge=1, le=4096)] = Field(
            8, title=gettext_noop("Embedding"), description=gettext_noop("Dimensions of a symbol's embedding.")
        )
        hidden: Annotated[int, Field(ge=1, le=16_384)] = Field(
            256, title=gettext_noop("Hidden units"), description=gettext_noop("Units of each LSTM layer.")
        )
        layers: Annotated[int, Field(ge=1, le=16)] = Field(
            2, title=gettext_noop("Layers"), description=gettext_noop("Number of stacked LSTM layers.")
        )

    options: Options

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """From symbols [n, length] to logits [n, length, num_classes]; initialised as torch does."""
        from fedsim.learning.symbol_lstm import SymbolLstm  # noqa: PLC0415 - imports torch

        if len(feature_shape) != 1:
            raise BadInput(
                f"model shakespeare_lstm takes sequences of symbols, [length]; the data set's examples have the shape "
                f"{list(feature_shape)}: choose another model or data set"
            )
        return SymbolLstm(num_classes, self.options.embedding, self.options.hidden, self.options.layers)
