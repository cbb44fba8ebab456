"""Why a plan cannot be carried out: parts that do not work with each other, messages that would be too long."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from fedsim.data_schema import COMMON
from fedsim.errors import BadInput
from fedsim.learning.attacks import check_attack, make_attack
from fedsim.learning.buffering_checks import check_buffering
from fedsim.learning.partitions import make_partitioner
from fedsim.learning.samplers import check_sampler, make_sampler
from fedsim.learning.screenings import make_screening
from fedsim.learning.strategies import Strategy, check_cohort
from fedsim.messages import Broadcast, Chunk
from fedsim.settings import TaskSettings
from fedsim.state_machines.candidates import Impossible

if TYPE_CHECKING:
    from fedsim.state_machines.plan import Plan


def unfit_parts(strategy: Strategy, settings: TaskSettings) -> str | None:
    """Why the parts of a task do not work with each other, or None."""
    sampler, attack = make_sampler(settings), make_attack(settings)
    try:
        check_cohort(strategy, settings)
        check_sampler(sampler, settings)
        check_attack(attack, settings, strategy, make_partitioner(settings))
        check_buffering(strategy, settings, sampler, make_screening(settings), attack)
    except BadInput as problem:
        return str(problem)
    return None


def too_long(plan: Plan, broadcast_bytes: int) -> Impossible | None:
    """Whether some cohort could put more clients on a node than a model's metadata can name."""
    settings = plan.settings
    cohort, sizes = make_sampler(settings).num_drawn(settings.num_clients, settings.cohort_size), plan.chunk_sizes
    used: tuple[tuple[int, int], ...] = ()
    last_chunk = ceil(cohort / min(sizes)) + len(plan.shares)  # each node may have one that is not full
    advice = "choose a smaller fraction_train or more nodes"
    if (buffering := plan.buffering) is not None:
        cohort, sizes = buffering.size, (1,) * len(plan.shares)
        last_chunk = cohort * len(plan.shares)
        used = ((settings.num_rounds, last_chunk),) * (cohort * (buffering.max_staleness + 1))
        advice = "choose a smaller buffer_size or max_staleness"
    for share, size in zip(plan.shares, sizes, strict=True):
        here = min(cohort, share.num_clients)
        end = share.first_client + share.num_clients
        clients = range(end - here, end)  # as many as can be drawn here, and those with the longest numbers
        chunks = tuple(Chunk(id=last_chunk, clients=tuple(clients[at : at + size])) for at in range(0, here, size))
        longest = Broadcast(chunks=chunks, used_through=plan.settings.num_rounds, used=used, scale=_longest_scale(plan))
        length = len(longest.model_dump_json())
        if length > broadcast_bytes:
            return Impossible(
                f"a round can choose {here} clients on {share.node}: to list them beside the model takes {length} "
                f"bytes, {broadcast_bytes} are taken; {advice}"
            )
    return None


def _longest_scale(plan: Plan) -> tuple[tuple[float, float], ...]:
    """As long as the numbers of a common scaling can be as JSON."""
    schema = plan.data_schema
    common = schema is not None and schema.scaling == COMMON
    return ((-1.2345678901234567e-100,) * 2,) * len(schema.features) if common and schema is not None else ()
