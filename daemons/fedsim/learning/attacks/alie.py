"""The attack that stays within the deviation of honest updates."""

from __future__ import annotations

from statistics import NormalDist

from pydantic import Field

from fedsim.learning.attacks import Attack, AttackContext, AttackOptions, Differences
from fedsim.plugins import gettext_noop


class Alie(Attack):
    """All attackers send μ + z · σ: little enough to hide among honest updates, and all in one direction.

    Baruch et al. 2019, "A little is enough: circumventing defenses for distributed learning", algorithm 3. As there, μ
    and σ are estimated from what the attackers have trained themselves, here those of one chunk.
    """

    title = gettext_noop("alie – a little is enough: mean plus z deviations")
    least_attackers = 2

    class Options(AttackOptions):
        """Who attacks, and how far."""

        z: float = Field(
            0.0,
            ge=0,
            le=1000,
            title="z",
            description=gettext_noop(
                "Deviations from the mean; 0: the paper's z max for n clients and m attackers of a round."
            ),
        )

    options: Options

    def craft(self, honest: Differences, context: AttackContext) -> Differences:
        """μ + z · σ, coordinate by coordinate."""
        z = self.options.z or z_max(context.n, context.m)
        mu, sigma = honest.mean(axis=0), honest.std(axis=0)
        attack: Differences = mu + z * sigma
        return attack


def z_max(n: int, m: int) -> float:
    """The largest z for which enough honest clients are farther from the mean; 0 if there is none above it."""
    if n <= m:
        return 0.0
    s = n // 2 + 1 - m  # honest clients that the attackers need on their side
    phi = (n - m - s) / (n - m)
    return NormalDist().inv_cdf(phi) if 0.5 < phi < 1 else 0.0
