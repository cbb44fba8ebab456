"""FedPer."""

from __future__ import annotations

from fedsim.learning.personal import PersonalLayers
from fedsim.plugins import gettext_noop


class FedPer(PersonalLayers):
    """FedAvg of the base layers; each client keeps its personalization layers (Arivazhagan et al. 2019, algorithm 1).

    A client trains both together.
    """

    title = gettext_noop("FedPer – averaged base layers, personal last layers")
