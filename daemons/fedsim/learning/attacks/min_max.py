"""The attack as far away as two honest updates are from each other."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import numpy as np
from pydantic import Field

from fedsim.learning.attacks import Attack, AttackContext, AttackOptions, Differences
from fedsim.learning.distances import dot, products, squared_distances
from fedsim.plugins import gettext_noop


class MinMax(Attack):
    """All attackers send μ + γ · ∇p, with the largest γ at which it is as near to updates as these are to others.

    Shejwalkar & Houmansadr 2021, "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for
    federated learning", equation 8 and algorithm 1. In the paper's words the attack knows no benign updates
    ("updates-unknown"): it takes what the attackers of one chunk have trained themselves.
    """

    title = gettext_noop("min_max – as far as two updates are from each other")
    least_attackers = 2

    class Options(AttackOptions):
        """Who attacks, and the search for γ."""

        perturbation: Literal["unit", "std", "sign"] = Field(
            "std",
            title="∇p",
            description=gettext_noop("Direction: the inverse unit vector, the inverse deviation, or the inverse sign."),
        )
        gamma_init: float = Field(
            10.0, gt=0, le=1e6, title="γ init", description=gettext_noop("Where the search for γ begins.")
        )
        tau: float = Field(
            1e-5, ge=1e-12, le=1, title="τ", description=gettext_noop("The search for γ ends at steps below this.")
        )

    options: Options

    def craft(self, honest: Differences, context: AttackContext) -> Differences:  # noqa: ARG002
        """μ + γ · ∇p."""
        mu = honest.mean(axis=0)
        p = self._direction(honest, mu)
        found = products(list(honest), mu)
        squares, farthest = np.diagonal(found), float(squared_distances(found).max())
        inner, length = np.array([dot(one - mu, p) for one in honest]), dot(p, p)

        def near_enough(gamma: float) -> bool:
            """Whether max ‖μ + γp - ∇i‖ is at most max ‖∇i - ∇j‖."""
            return float((squares - 2 * gamma * inner + gamma**2 * length).max()) <= farthest

        gamma, step, largest = self.options.gamma_init, self.options.gamma_init / 2, 0.0
        while step > self.options.tau:
            if near_enough(gamma):
                largest, gamma = gamma, gamma + step
            else:
                gamma = max(0.0, gamma - step)
            step /= 2
        attack: Differences = mu + largest * p
        return attack

    def _direction(self, honest: Differences, mu: Differences) -> Differences:
        """∇p, float64 [P]."""
        match self.options.perturbation:
            case "unit":
                length = sqrt(dot(mu, mu))
                return -mu / length if length > 0 else np.zeros_like(mu)
            case "std":
                deviation: Differences = -honest.std(axis=0)
                return deviation
            case "sign":
                return -np.sign(mu)
