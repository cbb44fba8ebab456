"""The attack that reverses updates."""

from __future__ import annotations

from pydantic import Field

from fedsim.learning.attacks import Attack, AttackContext, AttackOptions, Differences
from fedsim.plugins import gettext_noop


class SignFlip(Attack):
    """Each attacker sends -s times what it has trained (Li et al. 2019, "RSA", section 5: sign-flipping attack)."""

    title = gettext_noop("sign_flip – sends the opposite of what was trained")

    class Options(AttackOptions):
        """Who attacks, and how far."""

        s: float = Field(
            1.0,
            gt=0,
            le=1000,
            title="s",
            description=gettext_noop("Magnitude: the difference is multiplied by its negative."),
        )

    options: Options

    def craft(self, honest: Differences, context: AttackContext) -> Differences:  # noqa: ARG002
        """-s · Δ, for each attacker its own."""
        return -self.options.s * honest
