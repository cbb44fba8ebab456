"""Samplers: which clients train in a round. One class in one file each.

A sampler keeps nothing. What it may know besides the seed and the round is `Known`: the number of examples of each
client, which is fixed before round 1, and the loss that each client has last reported, which the server stores with
each committed round. So a restarted server draws the same cohorts, and so does `simulate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedsim.errors import BadInput
from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings
from fedsim.update import TRAIN_LOSS, Update

Losses = tuple[float | None, ...]
"""The training loss that each client has last reported, None before its first one; empty before round 1."""


@dataclass(frozen=True)
class Known:
    """What a sampler knows of a task's clients.

    Attributes:
        sizes: examples of each client.
        losses: see `Losses`; empty unless the sampler declares `needs_losses`.
    """

    sizes: Sequence[int] = ()
    losses: Losses = ()


NOTHING_KNOWN = Known()


class Sampler(Plugin):
    """The base of all samplers.

    Attributes:
        needs_sizes: whether it draws by the clients' numbers of examples.
        needs_losses: whether it draws by the losses that clients have reported.
        draws_singly: whether it also says which clients train where there are no cohorts, because each client is as
            likely as any other: then rounds can be asynchronous.
    """

    needs_sizes: ClassVar[bool] = False
    needs_losses: ClassVar[bool] = False
    draws_singly: ClassVar[bool] = False

    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:
        """Draw the round's cohort: `num_drawn` different clients of `num_clients`, ascending.

        A pure function of its arguments; draw from `fedsim.learning.randomness.generator(seed, "cohort", ...)`.
        """
        raise NotImplementedError

    def draw_known(
        self,
        seed: int,
        round_number: int,
        num_clients: int,
        cohort_size: int,
        known: Known,  # noqa: ARG002
    ) -> tuple[int, ...]:
        """The same for samplers that know more of the clients: override this one in place of `draw`."""
        return self.draw(seed, round_number, num_clients, cohort_size)

    def num_drawn(self, num_clients: int, cohort_size: int) -> int:  # noqa: ARG002
        """How many clients a round trains. With more than `cohort_size` the first to answer count, that many."""
        return cohort_size

    def problem(self, num_clients: int, cohort_size: int) -> str:  # noqa: ARG002
        """Why it cannot draw cohorts of this size; empty if it can."""
        return ""

    @property
    def knows_more(self) -> bool:
        """Whether its cohorts follow from more than the settings."""
        return self.needs_sizes or self.needs_losses


def make_sampler(settings: TaskSettings) -> Sampler:
    """The sampler that the settings name; raises `BadInput` if it cannot be made."""
    sampler: Sampler = settings.plugin("sampler")
    return sampler


def check_sampler(sampler: Sampler, settings: TaskSettings) -> None:
    """Check that a sampler can draw a task's cohorts; raises `BadInput` with the reason if it cannot."""
    if problem := sampler.problem(settings.num_clients, settings.cohort_size):
        raise BadInput(f"the sampler {settings.sampler}: {problem}")


def last_losses(before: Losses, updates: Iterable[tuple[Update, Sequence[int]]], num_clients: int) -> Losses:
    """The losses after a round.

    Args:
        before: after the round before.
        updates: that count in the round, each with the clients behind it. Where a node reports for a chunk, that is the
            loss of each of its clients.
        num_clients: the population.
    """
    losses: list[float | None] = list(before) or [None] * num_clients
    for update, clients in updates:
        for client in clients:
            losses[client] = update.metrics.get(TRAIN_LOSS, losses[client])
    return tuple(losses)
