"""The attack that trains on wrong labels."""

from __future__ import annotations

import numpy as np

from fedsim.learning.attacks import Attack
from fedsim.learning.examples import FloatArray, IntArray
from fedsim.plugins import gettext_noop


class LabelFlip(Attack):
    """Attackers train honestly on flipped labels: l becomes C - 1 - l of C classes.

    Fang et al. 2020, "Local model poisoning attacks to Byzantine-robust federated learning", section 4.1.
    """

    title = gettext_noop("label_flip – trains on flipped labels")
    objectives = frozenset({"classification"})

    def poison(
        self,
        features: FloatArray,
        labels: IntArray,
        num_classes: int,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[FloatArray, IntArray]:
        """C - 1 - l."""
        return features, num_classes - 1 - labels
