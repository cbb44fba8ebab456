"""How a round's cohort is cut into chunks: a pure function of the cohort and of the clients' placement.

The chunk is the unit of training, summing, sending and doing again. Its place in the canonical order (nodes in their
order, clients ascending) fixes the order of every sum, so that the result does not depend on who answered first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class ChunkPlan:
    """Some of the cohort's clients on one node. `id` counts from 0 over all nodes, `node` is the placement's index.

    `slot` is what the node's n-th chunk of every round has in common, whoever its clients are: see `slots`.
    """

    id: int
    node: int
    clients: tuple[int, ...]
    slot: int = field(default=0, compare=False)


def slots(first_client: int, count: int) -> range:
    """The slots of a node's `count` chunks in a round.

    They count from the node's first client, so that they differ between nodes: no node has more chunks than clients.
    """
    return range(first_client, first_client + count)


def cut_chunks(
    cohort: Sequence[int], placement: Sequence[tuple[int, int]], chunk_clients: int | Sequence[int]
) -> tuple[ChunkPlan, ...]:
    """Cut a cohort into chunks of at most `chunk_clients`, on each node as even as possible.

    Args:
        cohort: the clients, ascending.
        placement: (first_client, num_clients) of each node, in the task's order of nodes.
        chunk_clients: most clients in a chunk, on all nodes or on each.

    Raises:
        ValueError: a client of the cohort is placed on no node, or on two.
    """
    chunks: list[ChunkPlan] = []
    for node, (first_client, num_clients) in enumerate(placement):
        here = cohort[bisect_left(cohort, first_client) : bisect_left(cohort, first_client + num_clients)]
        most = chunk_clients if isinstance(chunk_clients, int) else chunk_clients[node]
        count = -(-len(here) // most)
        bounds = [len(here) * number // count for number in range(count + 1)] if count else [0]
        for slot, (start, end) in zip(slots(first_client, count), pairwise(bounds), strict=True):
            chunks.append(ChunkPlan(len(chunks), node, tuple(here[start:end]), slot))
    placed = sum(len(chunk.clients) for chunk in chunks)
    if placed != len(cohort):
        raise ValueError(f"the placement holds {placed} of the cohort's {len(cohort)} clients; it must hold each once")
    return tuple(chunks)
