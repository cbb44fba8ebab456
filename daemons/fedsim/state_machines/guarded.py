"""What guarded data sets and the least numbers of clients that institutions demand mean for the plan of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fedsim.learning.blocks import blocks_of_client, most_clients_of_blocks
from fedsim.learning.partitions import make_partitioner, most_clients, too_many_clients
from fedsim.learning.partitions.natural import clients_of_size
from fedsim.learning.samplers import make_sampler
from fedsim.learning.strategies import make_strategy
from fedsim.messages import DataSetInfo, Hello, Uplink
from fedsim.settings import TaskSettings
from fedsim.text import rounded

if TYPE_CHECKING:
    from fedsim.state_machines.plan import Plan

CHECKED_ROUNDS = 1000
"""Rounds whose cohorts are examined before a task starts; nodes examine every round."""


def capacity(settings: TaskSettings, hello: Hello, info: DataSetInfo) -> int:
    """How many clients of the task a node can have; no more than its blocks of guarded data, or its data, allow."""
    if info.guard is None and make_partitioner(settings).natural:
        least = max(settings.min_partition_size, hello.min_examples)
        return min(hello.clients, clients_of_size(info.natural_clients, least))
    if info.guard is None:
        return hello.clients
    guard = info.guard
    most = most_clients_of_blocks(settings, guard.num_blocks, guard.block_size, hello.min_examples)
    return min(hello.clients, most)


def limits_of(own_clients: bool, own_data: bool) -> str:
    """What limits the `capacity` of nodes besides their own number of clients, in words."""
    if own_clients:
        return " that their data names"
    return " of whole blocks of guarded data" if own_data else ""


def too_many(settings: TaskSettings, info: DataSetInfo) -> str | None:
    """Why the clients are too many for data that all nodes have, or None."""
    if make_partitioner(settings).natural:
        most = clients_of_size(info.natural_clients, settings.min_partition_size)
        problem = f"{settings.num_clients} clients are too many: the data names at most {most} that are large enough"
    else:
        most = most_clients(settings, info.num_train)
        problem = too_many_clients(settings, info.num_train, most)
    return f"{info.name}: {problem}" if settings.num_clients > most else None


def unwilling(settings: TaskSettings, hello: Hello, info: DataSetInfo) -> str | None:
    """Why a node's blocks, or its institution's least number of clients, exclude it; None if they do not."""
    if not settings.trains and hello.statistics == "none":
        return "lets no statistics of its data leave (institution.statistics in its client.yml)"
    able, guard, natural = capacity(settings, hello, info), info.guard, make_partitioner(settings).natural
    if guard is not None and settings.attack:
        return f"guards {info.name}, and no attack may use guarded data: choose an open data set"
    if guard is not None and make_partitioner(settings).changes_features:
        return f"guards {info.name}, and the partition {settings.partition} changes features: choose an open data set"
    if natural and guard is not None:
        return f"guards {info.name} in blocks of examples, which are not its clients': choose an open data set"
    if natural and not info.natural_clients:
        return f"has data of {info.name} that does not say to which client an example belongs"
    if natural and able < 1:
        return f"has data of {info.name} that names no client with as many examples as are asked for"
    if guard is not None and able < 1:
        needed = blocks_of_client(settings, guard.block_size, hello.min_examples)
        return (
            f"guards {info.name} in about {rounded(guard.num_blocks)} blocks of {guard.block_size} examples, and a "
            f"client needs {needed}: choose a smaller local_batch_size or min_partition_size"
        )
    if guard is not None and make_strategy(settings).buffering is not None:
        return (
            f"guards {info.name}, and the rounds of {settings.strategy} are asynchronous: the times of its updates "
            "would reveal more than the guard allows; choose an open data set"
        )
    if hello.min_clients == 1 or make_partitioner(settings).per_node:
        return None
    if able < hello.min_clients:
        return f"can have {able} clients, and its institution wants {hello.min_clients} (min_clients)"
    if make_strategy(settings).uplink == Uplink.EACH_CLIENT and not hello.individual_updates:
        rule = settings.aggregation or settings.strategy
        return (
            f"lets no update leave of fewer than {hello.min_clients} clients, and {rule} needs that of each client "
            "(individual_updates)"
        )
    return None


def too_few_clients(plan: Plan, hellos: Mapping[str, Hello]) -> str | None:
    """Why the cohort of some round has too few clients of a node for its institution, or None."""
    least = [hellos[share.node].min_clients for share in plan.shares]
    if max(least) == 1 or make_partitioner(plan.settings).per_node:
        return None
    for share, wanted in zip(plan.shares, least, strict=True):
        if share.num_clients < wanted:
            return (
                f"{share.node} would have {share.num_clients} clients, and its institution wants {wanted} (min_clients)"
            )
    if make_sampler(plan.settings).knows_more:
        return (
            f"the sampler {plan.settings.sampler} draws by what is known once the task runs, and an institution wants "
            f"{max(least)} clients in each round (min_clients): choose another sampler"
        )
    for number in range(1, min(plan.settings.num_rounds, CHECKED_ROUNDS) + 1):
        here = [0] * len(least)
        for chunk in plan.chunks(number):
            here[chunk.node] += len(chunk.clients)
        for share, wanted, count in zip(plan.shares, least, here, strict=True):
            if 0 < count < wanted:
                return (
                    f"the cohort of round {number} has {count} clients of {share.node}, and its institution wants "
                    f"{wanted} (min_clients): choose a larger fraction_train"
                )
    return None


def least_chunk(hellos: Iterable[Hello]) -> int:
    """A number of clients in a chunk for which chunks of equal size have as many as each institution wants."""
    return 2 * max(hello.min_clients for hello in hellos) - 1


def guarded_notes(infos: Mapping[str, DataSetInfo], nodes: Iterable[str]) -> list[str]:
    """What the record of a task says of the nodes whose data is guarded."""
    guarded = [node for node in nodes if infos[node].guard is not None]
    if not guarded:
        return []
    note = "its data is guarded: it formed the clients by a secret of its own"
    again = "a task with guarded data can be repeated with the same nodes, not by simulate"
    return [*(f"{node}: {note}" for node in guarded), again]
