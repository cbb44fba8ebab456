"""The 2NN of McMahan et al."""

from __future__ import annotations

from pydantic import Field

from fedsim.learning.models.mlp import HiddenLayers, Mlp
from fedsim.plugins import gettext_noop


class McMahan2nn(Mlp):
    """The 2NN of McMahan et al. 2017: two hidden layers of 200, 199,210 parameters on MNIST."""

    title = gettext_noop("2NN – two hidden layers of 200")

    class Options(Mlp.Options):
        """The hidden layers."""

        hidden: HiddenLayers = Field(
            (200, 200),
            title=gettext_noop("Hidden layers"),
            description=gettext_noop("Units of each hidden layer, separated by commas."),
        )

    options: Options
