"""The network of the model `cifar_cnn`."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn


class CroppedCnn(nn.Module):
    """Two 5x5 convolutions and two hidden layers, on square crops.

    In training an image is cropped and mirrored at random, in testing the centre is used; then each image is brought
    to mean 0 and deviation 1 (the preparation that McMahan et al. 2017 took over from TensorFlow's tutorial).
    """

    def __init__(self, colours: int, channels: int, hidden: tuple[int, int], crop: int, num_classes: int) -> None:
        super().__init__()
        self.crop = crop
        side = crop // 4
        self.layers = nn.Sequential(
            nn.Conv2d(colours, channels, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(channels, channels, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(channels * side * side, hidden[0]),
            nn.ReLU(),
            nn.Linear(*hidden),
            nn.ReLU(),
            nn.Linear(hidden[1], num_classes),
        )

    def prepare(self, features: Tensor, rng: np.random.Generator | None) -> Tensor:
        """From images float32 [n, H, W] or [n, C, H, W] to float32 [n, C, crop, crop]."""
        images = features.unsqueeze(1) if features.dim() == 3 else features
        spare_rows, spare_columns = images.shape[2] - self.crop, images.shape[3] - self.crop
        if rng is None:
            top, left = spare_rows // 2, spare_columns // 2
            crops = images[:, :, top : top + self.crop, left : left + self.crop]
        else:
            count, pixels = len(images), np.arange(self.crop)
            rows = rng.integers(spare_rows + 1, size=(count, 1)) + pixels
            columns = rng.integers(spare_columns + 1, size=(count, 1)) + pixels
            columns = np.where(rng.integers(2, size=(count, 1)) == 1, columns[:, ::-1], columns)
            which = torch.arange(count, device=images.device)[:, None, None]
            row = torch.from_numpy(rows).to(images.device)[:, :, None]
            column = torch.from_numpy(columns).to(images.device)[:, None, :]
            crops = images[which, :, row, column].permute(0, 3, 1, 2)
        flat = crops.reshape(len(crops), -1)
        deviation = flat.std(dim=1, correction=0, keepdim=True).clamp_min(flat.shape[1] ** -0.5)
        return ((flat - flat.mean(dim=1, keepdim=True)) / deviation).reshape(crops.shape)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, num_classes] of prepared images."""
        return cast("Tensor", self.layers(images))
