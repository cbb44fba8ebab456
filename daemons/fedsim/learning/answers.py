"""Whose updates count in a simulated round: as a record says, or as if the chunks had answered in their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from fedsim.errors import BadInput
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.samplers import Losses, Sampler, last_losses
from fedsim.learning.strategies import Strategy, Uplink
from fedsim.learning.transforms import Pipeline
from fedsim.settings import TaskSettings
from fedsim.update import Update


def absent_clients(
    rule: Strategy,
    pipeline: Pipeline,
    settings: TaskSettings,
    missing: Mapping[int, Collection[int]] | Mapping[str, Collection[int]],
) -> defaultdict[int, frozenset[int]]:
    """The missing clients by round, whose numbers are text in JSON; in other rounds there are none."""
    absent = defaultdict[int, frozenset[int]](frozenset)
    absent |= {int(number): frozenset(clients) for number, clients in missing.items() if clients}
    if absent and (rule.clients_keep_state(settings) or pipeline.keeps_state(rule)):
        keeper = "strategy whose clients keep" if rule.clients_keep_state(settings) else "transform whose senders keep"
        raise BadInput(
            f"a run that lost clients cannot be replayed with a {keeper} state: "
            "no record says what state the missing clients kept"
        )
    return absent


def answered_chunks(rule: Strategy, chunks: Sequence[ChunkPlan], absent: frozenset[int]) -> list[ChunkPlan]:
    """The chunks of which an update counts; a chunk is always trained whole."""
    for chunk in chunks:
        lost = absent.intersection(chunk.clients)
        if lost and rule.uplink == Uplink.SUM and len(lost) < len(chunk.clients):
            raise BadInput(
                f"the clients {', '.join(map(str, sorted(lost)))} cannot be missing without the others of their chunk "
                f"({', '.join(map(str, chunk.clients))}), for which the strategy sends one sum: give the placement and "
                "chunk_clients of the run"
            )
    return [chunk for chunk in chunks if not absent.issuperset(chunk.clients)]


def late_clients(rule: Strategy, chunks: Sequence[ChunkPlan], sufficient: int) -> frozenset[int]:
    """Those after the first `sufficient` clients of a round that trains more; the sum of a chunk counts whole."""
    late: set[int] = set()
    answered = 0
    for chunk in chunks:
        units = [(client,) for client in chunk.clients] if rule.uplink == Uplink.EACH_CLIENT else [chunk.clients]
        for clients in units:
            if answered >= sufficient:
                late.update(clients)
            answered += len(clients)
    return frozenset(late)


def losses_after(
    sampler: Sampler, before: Losses, updates: Sequence[Update], chunks: Sequence[ChunkPlan], num_clients: int
) -> Losses:
    """What clients have reported up to a round, for samplers that need it; see `last_losses`."""
    if not sampler.needs_losses:
        return before
    behind = {chunk.id: chunk.clients for chunk in chunks}
    reported = [(one, behind[one.chunk] if one.client is None else (one.client,)) for one in updates]
    return last_losses(before, reported, num_clients)
