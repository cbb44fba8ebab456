"""The attack that makes the mean point away from the honest one."""

from __future__ import annotations

from pydantic import Field

from fedsim.learning.attacks import Attack, AttackContext, AttackOptions, Differences
from fedsim.plugins import gettext_noop


class InnerProduct(Attack):
    """All attackers send -ε times the mean, so that its inner product with what is combined becomes negative.

    Xie et al. 2020, "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation", section 4. The
    mean is estimated from what the attackers of one chunk have trained themselves.
    """

    title = gettext_noop("inner_product – sends a negative multiple of the mean")

    class Options(AttackOptions):
        """Who attacks, and how far."""

        epsilon: float = Field(
            0.1,
            gt=0,
            le=1000,
            title="ε",
            description=gettext_noop("Factor of the negative mean; a small one deceives rules that trust distances."),
        )

    options: Options

    def craft(self, honest: Differences, context: AttackContext) -> Differences:  # noqa: ARG002
        """-ε · mean."""
        attack: Differences = -self.options.epsilon * honest.mean(axis=0)
        return attack
