"""The sampler that draws more clients than are needed."""

from __future__ import annotations

from math import ceil

from pydantic import Field

from fedsim.learning.samplers.uniform import Uniform
from fedsim.plugins import PluginOptions, gettext_noop


class OverSelection(Uniform):
    """Draws (1 + ε) times the cohort uniformly; the round closes when as many as the cohort have answered.

    Bonawitz et al. 2019, "Towards federated learning at scale: system design", section 2.2: 130 % of the devices. Which
    clients counted is decided by who answers first, and recorded before anything is summed.
    """

    title = gettext_noop("over_selection – draws more, and the first to answer count")
    draws_singly = False

    class Options(PluginOptions):
        """How many more."""

        epsilon: float = Field(
            0.3,
            gt=0,
            le=10,
            title="ε",
            description=gettext_noop("How many more clients are drawn than are needed, as a share of these."),
        )

    options: Options

    def num_drawn(self, num_clients: int, cohort_size: int) -> int:
        """(1 + ε) times the cohort, at most all clients."""
        return min(num_clients, ceil(round(cohort_size * (1 + self.options.epsilon), 6)))

    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:
        """Uniformly, without replacement."""
        return super().draw(seed, round_number, num_clients, self.num_drawn(num_clients, cohort_size))
