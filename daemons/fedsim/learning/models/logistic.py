"""Logistic regression."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from fedsim.learning.models import Model
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import nn


class Logistic(Model):
    """Logistic regression: one linear layer."""

    title = gettext_noop("logistic – one linear layer")

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """A linear layer on the flat example."""
        from torch import nn  # noqa: PLC0415 - daemons load this module without torch

        from fedsim.learning.networks import he_initialised  # noqa: PLC0415 - imports torch

        return he_initialised(nn.Sequential(nn.Flatten(), nn.Linear(prod(feature_shape), num_classes)))
