"""FedBN."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.errors import BadInput
from fedsim.learning.strategies import Weighted
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import nn


class FedBn(Weighted):
    """FedAvg of all but batch normalisation, which each client keeps whole (Li et al. 2021, algorithm 1)."""

    title = gettext_noop("FedBN – batch normalisation stays with each client")

    def personal_tensors(self, model: nn.Module) -> frozenset[str]:
        """Scale, shift, running mean and running variance of each batch normalisation."""
        from fedsim.learning.tensor_roles import normalisation_tensors  # noqa: PLC0415 - imports torch

        if not (found := normalisation_tensors(model)):
            raise BadInput("fedbn: the model has no batch normalisation (torch.nn.BatchNorm…): choose fedavg")
        return found
