"""The attack with random updates."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedsim.learning.attacks import Attack, AttackContext, AttackOptions, Differences
from fedsim.plugins import gettext_noop


class Gaussian(Attack):
    """Attackers send noise from N(0, σ²) as their differences (Blanchard et al. 2017, section 6: Gaussian attack)."""

    title = gettext_noop("gaussian – sends random noise")

    class Options(AttackOptions):
        """Who attacks, and the noise."""

        sigma: float = Field(
            1.0,
            gt=0,
            le=1e6,
            title="σ",
            description=gettext_noop("Standard deviation of each number; the paper's is 200, for gradients."),
        )

    options: Options

    def craft(self, honest: Differences, context: AttackContext) -> Differences:
        """Fresh noise of each attacker."""
        noise = [context.generator("gaussian", client).standard_normal(honest.shape[1]) for client in context.clients]
        return self.options.sigma * np.stack(noise)
