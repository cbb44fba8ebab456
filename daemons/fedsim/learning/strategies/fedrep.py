"""FedRep."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.learning.personal import PersonalLayers
from fedsim.learning.strategies import TrainedPart
from fedsim.plugins import gettext_noop


class FedRep(PersonalLayers):
    """A shared representation, personal heads (Collins et al. 2021, algorithm 1).

    Of a round's local epochs the first τ train a client's head with the received representation, the others the
    representation with this head.
    """

    title = gettext_noop("FedRep – heads first, then the shared representation")

    class Options(PersonalLayers.Options):
        """The weighting, the heads, and how long they are trained."""

        head_epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
            1,
            title=gettext_noop("Head epochs τ"),
            description=gettext_noop("Of the local epochs, those that train the personal layers."),
        )

    options: Options

    @property
    def least_epochs(self) -> int:
        """One for the representation."""
        return self.options.head_epochs + 1

    def trains(self, epoch: int, num_epochs: int) -> TrainedPart:  # noqa: ARG002
        """The head, then the representation."""
        return TrainedPart.PERSONAL if epoch < self.options.head_epochs else TrainedPart.SHARED
