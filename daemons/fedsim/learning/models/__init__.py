"""Models: what a task trains. One class in one file each, whose module imports torch only in `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fedsim import plugins
from fedsim.data_schema import TARGETS, Targets
from fedsim.errors import BadInput
from fedsim.messages import ModelSpec
from fedsim.plugins import Plugin

if TYPE_CHECKING:
    from torch import nn


class Model(Plugin):
    """The base of all models.

    Attributes:
        targets: the only kind of targets that it can predict; None: it gives one row of outputs for each example.
    """

    targets: ClassVar[Targets | None] = None

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network, with random initial parameters from torch's global stream.

        Args:
            feature_shape: of one example.
            num_classes: how many logits the network returns for each example.

        Returns:
            A module from examples [n, *feature_shape], of the type of its parameters, to logits [n, num_classes], or
            what else the objective takes. What a task does with each of its tensors is in `learning.tensor_roles`.

        Raises:
            BadInput: the shape does not fit this model.
        """
        raise NotImplementedError


def make_model(spec: ModelSpec) -> Model:
    """The model that a specification names; raises `BadInput` if it cannot be made."""
    model: Model = plugins.make(plugins.MODELS, spec.name, spec.options)
    return model


def wrong_targets(name: str, model: Model, targets: Targets) -> str:
    """Why an objective with these targets cannot train the model, as a sentence; "" if nothing is known against it."""
    own = model.targets
    if own is None or own == targets:
        return ""
    return f"model {name} predicts {TARGETS[own]}, the objective {TARGETS[targets]}: choose another model or objective"


def image_shape(model: str, feature_shape: tuple[int, ...], least: int) -> tuple[int, int, int]:
    """(channels, height, width) of examples that are images; raises `BadInput` if they are not, or are too small."""
    if len(feature_shape) not in {2, 3} or min(feature_shape[-2:]) < least:
        raise BadInput(
            f"model {model} takes images of at least {least}x{least}, [height, width] or [channels, height, width]; "
            f"the data set's examples have the shape {list(feature_shape)}: choose another model or data set"
        )
    channels = 1 if len(feature_shape) == 2 else feature_shape[0]
    return channels, feature_shape[-2], feature_shape[-1]
