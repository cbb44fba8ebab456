"""FedAvg."""

from __future__ import annotations

from fedsim.learning.strategies import Weighted
from fedsim.plugins import gettext_noop


class FedAvg(Weighted):
    """The weighted mean of the clients' parameters (McMahan et al. 2017, algorithm 1)."""

    title = gettext_noop("FedAvg – weighted mean")
