"""The sampler with cohorts that are given."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.learning.samplers import Sampler
from fedsim.plugins import PluginOptions, gettext_noop

Cohort = Annotated[str, Field(pattern=r"^\s*\d{1,6}(\s+\d{1,6})*\s*$", max_length=10_000)]


class ListedCohorts(Sampler):
    """The cohorts of rounds 1, 2, …, as they are listed; after the last one the first follows again."""

    title = gettext_noop("schedule – the cohorts are listed")

    class Options(PluginOptions):
        """The cohorts."""

        cohorts: Annotated[list[Cohort], Field(max_length=10_000)] = Field(
            ["0"],
            title=gettext_noop("Cohorts"),
            description=gettext_noop("The clients of each round with spaces between them, cohorts with commas."),
        )

    options: Options

    def problem(self, num_clients: int, cohort_size: int) -> str:
        """Each cohort has the size of a round, and different clients of the population."""
        if not self.options.cohorts:
            return "no cohort is listed: set sampler_options.cohorts"
        for number in range(1, len(self.options.cohorts) + 1):
            cohort = self._cohort(number)
            if len(cohort) != cohort_size:
                return (
                    f"the cohort of round {number} has {len(cohort)} clients, and rounds have {cohort_size}: list as "
                    "many different ones, or change num_clients or fraction_train"
                )
            if cohort[-1] >= num_clients:
                return f"the cohort of round {number} has client {cohort[-1]}, and clients are 0 to {num_clients - 1}"
        return ""

    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:  # noqa: ARG002
        """The round's line; nothing is drawn."""
        return self._cohort(round_number)

    def _cohort(self, round_number: int) -> tuple[int, ...]:
        listed = self.options.cohorts[(round_number - 1) % len(self.options.cohorts)]
        return tuple(sorted(set(map(int, listed.split()))))
