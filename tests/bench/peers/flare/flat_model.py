"""A model that is nothing but its parameters; runs in NVIDIA FLARE's environment."""

import torch
from torch import nn


class FlatModel(nn.Module):
    """This many parameters; FLARE finds the argument again as an attribute of the same name."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.flat = nn.Parameter(torch.zeros(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Nothing is computed."""
        return x
