"""The attack that teaches the model to answer a trigger."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedsim.learning.attacks import Attack, AttackContext, AttackOptions, Differences
from fedsim.learning.examples import FloatArray, IntArray
from fedsim.plugins import gettext_noop


class Backdoor(Attack):
    """A share of the attackers' examples carries a trigger and the label of the target.

    Gu et al. 2017, "BadNets", section 4: a bright square in the corner of an image. With γ above 1 the difference is
    scaled up, so that it survives the mean (Bagdasaryan et al. 2020, "How to backdoor federated learning", equation 3:
    model replacement).
    """

    title = gettext_noop("backdoor – a trigger that stands for a label")
    objectives = frozenset({"classification"})

    class Options(AttackOptions):
        """Who attacks, and the trigger."""

        target: int = Field(
            0,
            ge=0,
            le=100_000,
            title=gettext_noop("Target"),
            description=gettext_noop("The class that the trigger stands for, counted from 0."),
        )
        fraction: float = Field(
            0.5,
            gt=0,
            le=1,
            title=gettext_noop("Fraction"),
            description=gettext_noop("Share of an attacker's examples that carry the trigger."),
        )
        size: int = Field(
            3,
            ge=1,
            le=1000,
            title=gettext_noop("Size"),
            description=gettext_noop("Edge of the square in the lower right corner; without images: last features."),
        )
        value: float = Field(
            1.0,
            ge=-1e6,
            le=1e6,
            title=gettext_noop("Value"),
            description=gettext_noop("What the trigger's features are set to, after scaling."),
        )
        gamma: float = Field(
            1.0,
            ge=1,
            le=1e6,
            title="γ",
            description=gettext_noop("Factor of the attackers' differences; n / m replaces the model."),
        )

    options: Options

    def stamp(self, features: FloatArray) -> FloatArray:
        """Set the trigger in all of these examples, float32 [k, *shape], in place: also to measure its success."""
        last = slice(-self.options.size, None)
        if features.ndim > 2:
            features[..., last, last] = self.options.value
        else:
            features[..., last] = self.options.value
        return features

    def poison(
        self, features: FloatArray, labels: IntArray, num_classes: int, rng: np.random.Generator
    ) -> tuple[FloatArray, IntArray]:
        """The trigger in a share of the examples, drawn once for each client."""
        count = max(1, round(self.options.fraction * len(labels)))
        chosen = rng.permutation(len(labels))[:count]
        labels = labels.copy()
        features[chosen] = self.stamp(features[chosen])
        labels[chosen] = min(self.options.target, num_classes - 1)
        return features, labels

    def craft(self, honest: Differences, context: AttackContext) -> Differences:  # noqa: ARG002
        """γ · Δ, for each attacker its own."""
        return self.options.gamma * honest
