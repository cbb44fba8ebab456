"""U-Net: a contracting and an expanding path with connections between equal sizes.

Ronneberger, Fischer, Brox: "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015, figure 1;
with padded convolutions, so that no border is lost, and batch normalisation after each.
"""

import torch
from torch import nn


class UShaped(nn.Module):
    """The network."""

    def __init__(self, channels, num_classes, width=64, depth=4):
        super().__init__()
        sizes = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            twice(inputs, outputs) for inputs, outputs in zip([channels, *sizes[:-1]], sizes, strict=True)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in reversed(sizes[:-1]))
        self.merge = nn.ModuleList(twice(2 * size, size) for size in reversed(sizes[:-1]))
        self.out = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        x = x if x.dim() == 4 else x.unsqueeze(1)  # images without channels
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for up, merge, skipped in zip(self.up, self.merge, reversed(kept[:-1]), strict=True):
            x = up(x)
            missing = skipped.shape[-2] - x.shape[-2], skipped.shape[-1] - x.shape[-1]  # of odd sizes
            x = merge(torch.cat([skipped, nn.functional.pad(x, (0, missing[1], 0, missing[0]))], 1))
        return self.out(x)


def twice(inputs, outputs):
    """Two 3x3 convolutions, each with batch normalisation and a rectifier."""
    layers = []
    for count in (inputs, outputs):
        layers += [nn.Conv2d(count, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
