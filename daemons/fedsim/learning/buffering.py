"""Buffered asynchronous rounds: what a strategy declares of them, which clients nodes train, a simulation's clock.

A round has no cohort: the server commits it as soon as its buffer holds K updates, whichever rounds they began in. What
was summed in which order is recorded, and that record, not the clock, is what a run is repeated from.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from fedsim.errors import BadInput
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.randomness import generator

Placement = Sequence[tuple[int, int]]
"""(first client, number of clients) of each node."""


@dataclass(frozen=True)
class Buffering:
    """How a strategy's rounds are buffered.

    Attributes:
        size: K, the updates of a round; 0: as many as a cohort would have.
        concurrency: M, the clients that train at once; 0: as many as K.
        max_staleness: an update that began more rounds before the one that could use it is discarded.
    """

    size: int
    concurrency: int
    max_staleness: int

    def of_cohort(self, cohort_size: int) -> Buffering:
        """Replace each 0 by the number that it stands for; the cohort's size is that of the settings."""
        size = self.size or cohort_size
        return Buffering(size, self.concurrency or size, self.max_staleness)


@dataclass(frozen=True)
class Arrival:
    """An update that was used: the round whose model it began with (see `Update.base_round`), and its client."""

    base_round: int
    client: int


def drawn_chunks(seed: int, round_number: int, placement: Placement, size: int) -> tuple[ChunkPlan, ...]:
    """What nodes train from a round's model, each client a chunk of its own, on each node in the order given.

    A node begins the next one whenever a client has finished, until the next model arrives. It is given K clients, so
    that a round can close with the updates of one node alone; they are drawn uniformly, without replacement.

    Args:
        seed: the task's.
        round_number: from 1.
        placement: of the clients on nodes.
        size: K.
    """
    chunks: list[ChunkPlan] = []
    for node, (first_client, num_clients) in enumerate(placement):
        chance = generator(seed, "buffered", round_number, node)
        order = chance.choice(num_clients, min(size, num_clients), replace=False)  # O(size), not O(num_clients)
        chunks += [
            ChunkPlan(len(chunks) + place, node, (first_client + client,))
            for place, client in enumerate(order.tolist())
        ]
    return tuple(chunks)


def arrivals_by_clock(seed: int, num_clients: int, buffering: Buffering) -> Iterator[tuple[Arrival, ...]]:
    """What the rounds of a simulation sum, round after round without end, by a deterministic model of time.

    M clients train at once (at most all there are). Each time a client takes is drawn from a half-normal distribution,
    by the seed and by how many have begun before it. As soon as a client has finished, another one begins with the
    newest model, drawn uniformly among those that are not training and have not trained from this model, which would
    give the same update again; where there is none, fewer than M train until the next model. Transfers, sums and tests
    take no time. An update that is staler than allowed is not used.

    Args:
        seed: the task's.
        num_clients: the population.
        buffering: of the strategy, with its K.
    """
    training: list[tuple[float, int, int, int]] = []  # end, how many began before, base round, client
    able = list(range(num_clients))  # those that are not training and have not begun with the newest model
    of_newest = list[int]()  # the others that are not training, in the order in which they finished
    begun, round_number, buffer = 0, 1, list[Arrival]()

    def fill(now: float) -> None:
        """Let clients begin until M train."""
        nonlocal begun
        while len(training) < buffering.concurrency and able:
            chance = generator(seed, "clock", begun)
            place = int(chance.integers(len(able)))
            able[place], able[-1] = able[-1], able[place]  # so that a draw costs the same whatever the population
            client = able.pop()
            heapq.heappush(training, (now + abs(float(chance.standard_normal())), begun, round_number, client))
            begun += 1

    now = 0.0
    while True:
        fill(now)
        now, _, base_round, client = heapq.heappop(training)
        (of_newest if base_round == round_number else able).append(client)
        if round_number - base_round <= buffering.max_staleness:
            buffer.append(Arrival(base_round, client))
        if len(buffer) == buffering.size:
            yield tuple(buffer)
            buffer.clear()
            able += of_newest
            of_newest.clear()
            round_number += 1


def read_record(given: Mapping[Any, Sequence[Any]], max_staleness: float = inf) -> dict[int, tuple[Arrival, ...]]:
    """The record in a checkpoint's JSON (`buffered`): round to a list of [base round, client].

    Raises:
        BadInput: it names a model that its round cannot have used.
    """
    record = {
        int(number): tuple(one if isinstance(one, Arrival) else Arrival(*map(int, one)) for one in arrivals)
        for number, arrivals in given.items()
    }
    for number, arrivals in record.items():
        for one in arrivals:
            if not 1 <= one.base_round <= number or number - one.base_round > max_staleness:
                raise BadInput(
                    f"the record says that round {number} used an update that began in round {one.base_round}, which "
                    "these settings do not allow: give the settings of the run"
                )
    return record
