"""What a simulation begins with: where clients are placed, the first model, and what clients and senders keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.array_layout import Layout
from fedsim.errors import BadInput
from fedsim.learning.aggregate import client_layout, uplink_layout
from fedsim.learning.components import Components
from fedsim.learning.examples import DataSet, FloatArray
from fedsim.learning.fixed_arrays import check_fixed, wanted_by
from fedsim.learning.held_out import ClientsHeldOut, held_out_of
from fedsim.learning.initial_arrays import fill_initial
from fedsim.learning.networks import TaskNetwork, initial_vector
from fedsim.learning.objectives import check_data
from fedsim.learning.partitions import Partition, Partitioner, partition_of
from fedsim.learning.samplers import check_sampler
from fedsim.learning.simulated_tests import SimulatedNode
from fedsim.learning.strategies import Strategy, check_cohort
from fedsim.learning.transforms import Pipeline
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.update import Arrays

if TYPE_CHECKING:
    from pathlib import Path


class StatesInMemory:
    """The states of a task's clients or senders, in memory; see `ClientStates`. Each is part of one chunk a round."""

    def __init__(self, layout: Layout, states: Mapping[int, Arrays]) -> None:
        self.states = dict(states)
        self._layout = layout

    def read(self, client: int) -> Arrays:
        """See `ClientStates`."""
        return self.states.get(client) or self._layout.views(np.zeros(self._layout.size, np.float32))

    def write(self, client: int, state: Arrays) -> None:
        """See `ClientStates`."""
        self.states[client] = self._layout.views(self._layout.flatten(state))


def fitting_spec(components: Components, settings: TaskSettings, nodes: Sequence[DataSet]) -> ModelSpec:
    """The task's model, for data that fits the objective."""
    spec = components.model_spec(settings, nodes[0].feature_shape, max(node.num_classes for node in nodes))
    for node in nodes:
        name = type(components.objective).__name__
        check_data(components.objective, name, node.train.targets, node.feature_shape, spec.num_classes)
    return spec


def first_vector(
    components: Components,
    spec: ModelSpec,
    settings: TaskSettings,
    network: TaskNetwork,
    initial: str | Path | Mapping[str, Any] | None,
) -> FloatArray:
    """The parameters before round 1: the model's own initialisation, or what training starts from."""
    vector = initial_vector(spec, settings.seed_of_model, components.model, components.objective, network.roles)
    filled = fill_initial(vector, wanted_by(network.roles), initial, settings.initial)
    if initial is not None:
        check_fixed(network, initial)
    return filled


def placed_clients(
    placement: Sequence[tuple[int, int]] | None,
    settings: TaskSettings,
    components: Components,
    nodes: Sequence[DataSet],
) -> Sequence[tuple[int, int]]:
    """The placement that is given, or one node; for several data sets one client of each, or all that they name.

    Raises:
        BadInput: `num_clients` is not the number of the nodes' clients, a plug-in does not fit it, or none is trained.
    """
    if not settings.trains:
        raise BadInput(f"a task of the kind {settings.kind} trains nothing: there is nothing to simulate")
    check_cohort(components.strategy, settings)
    check_sampler(components.sampler, settings)
    num_nodes = len(nodes)
    if components.partitioner.natural and num_nodes > 1:
        return _placed_natural(placement, settings, components.partitioner, nodes)
    if components.partitioner.per_node and settings.num_clients != num_nodes:
        raise BadInput(
            f"num_clients is {settings.num_clients}, but partition {settings.partition} has one client for each node, "
            f"here {num_nodes}: set num_clients to {num_nodes}"
        )
    if placement is not None:
        return placement
    return [(node, 1) for node in range(num_nodes)] if num_nodes > 1 else [(0, settings.num_clients)]


def _placed_natural(
    placement: Sequence[tuple[int, int]] | None,
    settings: TaskSettings,
    partitioner: Partitioner,
    nodes: Sequence[DataSet],
) -> Sequence[tuple[int, int]]:
    """The clients that each node's data names, one node after another."""
    if placement is not None:
        return placement
    sizes = [np.bincount(partitioner.groups(node.train)) for node in nodes]
    counts = [int((one >= settings.min_partition_size).sum()) for one in sizes]
    if sum(counts) != settings.num_clients:
        raise BadInput(
            f"num_clients is {settings.num_clients}, and the nodes' data names {' + '.join(map(str, counts))} clients "
            f"with at least {settings.min_partition_size} examples: set num_clients to {sum(counts)}, or give the "
            "placement"
        )
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    return list(zip(firsts, counts, strict=True))


def partitions_of_nodes(
    nodes: Sequence[DataSet],
    settings: TaskSettings,
    partitioner: Partitioner,
    placement: Sequence[tuple[int, int]],
) -> list[Partition]:
    """The partition of each data set."""
    own = placement if partitioner.natural and len(nodes) > 1 else [None] * len(nodes)
    return [partition_of(settings, node.train, partitioner, here) for node, here in zip(nodes, own, strict=True)]


def held_out_on(
    nodes: Sequence[DataSet],
    placement: Sequence[tuple[int, int]],
    settings: TaskSettings,
    partitioner: Partitioner,
    *,
    personal: bool,
) -> list[SimulatedNode]:
    """What each node tests models on; with one data set for all nodes the first one stands for them all.

    Where models are `personal` each node tests those of its own clients.
    """
    if not personal:
        held_out = [held_out_of(node) for node in nodes]
        shared = zip(placement, held_out, strict=False)
        return [SimulatedNode(first, count, some) for (first, count), some in shared if some is not None]
    partitions = partitions_of_nodes(nodes, settings, partitioner, placement)
    dealt = [ClientsHeldOut.of(node, partition) for node, partition in zip(nodes, partitions, strict=True)]
    if len(nodes) == 1:
        dealt *= len(placement)
    return [
        SimulatedNode(first, count, some.examples, some)
        for (first, count), some in zip(placement, dealt, strict=True)
        if some is not None and some.num_examples(first, count)
    ]


def states_of(held: StatesInMemory | None) -> dict[int, Arrays]:
    """Those that are kept, by the number of the client or sender."""
    return {} if held is None else held.states


def sizes_of_clients(
    nodes: Sequence[DataSet],
    settings: TaskSettings,
    partitioner: Partitioner,
    placement: Sequence[tuple[int, int]],
) -> tuple[int, ...]:
    """Examples of each client."""
    if partitioner.per_node:
        return tuple(len(node.train) for node in nodes)
    partitions = partitions_of_nodes(nodes, settings, partitioner, placement)
    if len(partitions) == 1:
        placement = [(0, settings.num_clients)]
    return tuple(
        partition.num_examples(client)
        for partition, (first, count) in zip(partitions, placement, strict=False)
        for client in range(first, first + count)
    )


def states_in_memory(
    rule: Strategy,
    pipeline: Pipeline,
    size: int,
    before: tuple[Mapping[int, Arrays], Mapping[int, Arrays]],
    personal: int = 0,
) -> tuple[StatesInMemory | None, StatesInMemory | None]:
    """What clients and senders keep, with what they had `before`; None where they keep nothing.

    `personal` is the length of a client's personal vector.
    """
    clients, senders = client_layout(rule, size, personal), pipeline.kept_layout(uplink_layout(rule, size))
    return (
        StatesInMemory(clients, before[0]) if clients.shapes else None,
        StatesInMemory(senders, before[1]) if senders.shapes else None,
    )
