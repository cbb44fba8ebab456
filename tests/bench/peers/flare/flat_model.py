"""A model that is nothing but its parameters; runs in NVIDIA FLARE's environment."""

import torch
from torch import nn


class FlatModel(nn.Module):
    """This many parameters."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.parameters_count = parameters
        self.flat = nn.Parameter(torch.zeros(parameters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Nothing is computed."""
        return x
