"""What is fixed before round 1: the nodes that take part, the placement of clients, the chunks of cohorts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated

from pydantic import Field

from fedsim.learning.cohort import ChunkPlan, cut_chunks
from fedsim.learning.partitions import make_partitioner, most_clients, too_many_clients
from fedsim.learning.samplers import make_sampler
from fedsim.learning.strategies import make_strategy
from fedsim.messages import (
    Assignment,
    Broadcast,
    Chunk,
    DataSetInfo,
    EngineInfo,
    Hello,
    Message,
    ModelSpec,
    Name,
    PluginInfo,
    Uid,
    Uplink,
)
from fedsim.plugins import kind_of
from fedsim.settings import TaskSettings, plugin_group

MAX_CHUNK_CLIENTS = 32


class NodeShare(Message):
    """A node's part in a task: the clients that live there, in one run of numbers, and how it trains them."""

    node: Name
    first_client: int
    num_clients: int
    engine: EngineInfo
    dataset_digest: str | None = None


class Plan(Message):
    """Everything that is fixed before round 1 and recorded; two runs with equal plans give equal bytes."""

    task: Uid
    number: Annotated[int, Field(ge=1)]
    settings: TaskSettings
    shares: tuple[NodeShare, ...]
    chunk_clients: int
    dataset_digest: str | None = Field(description="The same on every node; None where each has its own data")
    model_spec: ModelSpec
    uplink: Uplink = Field(description="What the strategy needs of each chunk")
    testset_from: Name | None = Field(description="The node that sends its test set; None: the server has its own")
    version: str
    plugins: dict[Name, PluginInfo] = Field({}, description="Each plug-in as the server has it, by its setting")

    @property
    def placement(self) -> tuple[tuple[int, int], ...]:
        """(first client, number of clients) of each node, in the plan's order."""
        return tuple((share.first_client, share.num_clients) for share in self.shares)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes, in the plan's order."""
        return tuple(share.node for share in self.shares)

    def chunks(self, round_number: int) -> tuple[ChunkPlan, ...]:
        """The round's cohort, cut into chunks: a pure function of the plan."""
        settings = self.settings
        cohort = make_sampler(settings).draw(settings.seed, round_number, settings.num_clients, settings.cohort_size)
        return cut_chunks(cohort, self.placement, self.chunk_clients)

    def assignment(self, node: str) -> Assignment:
        """What is sent to a node as `initparam`."""
        share = next(share for share in self.shares if share.node == node)
        return Assignment(
            task=self.task,
            number=self.number,
            settings=self.settings,
            dataset_digest=share.dataset_digest,
            first_client=share.first_client,
            num_clients=share.num_clients,
            model_spec=self.model_spec,
            engine=share.engine,
            uplink=self.uplink,
            send_testset=self.testset_from == node,
        )


@dataclass(frozen=True)
class Waiting:
    """The task cannot start yet; `reason` says what it waits for, so that a person can act."""

    reason: str


@dataclass(frozen=True)
class Impossible:
    """The task can never run here as it is; `reason` says why and what would."""

    reason: str


def _unfit(settings: TaskSettings, plugins: Mapping[str, PluginInfo], hello: Hello) -> str | None:
    """Why this node cannot take part, or None."""
    if settings.dataset not in {dataset.name for dataset in hello.datasets}:
        has = ", ".join(dataset.name for dataset in hello.datasets) or "none"
        return f"has no data set {settings.dataset} (it has {has})"
    for setting, plugin in plugins.items():
        group = plugin_group(setting)
        offered = hello.offers(group)
        found = offered.get(plugin.name)
        if found is None:
            return f"does not offer the {kind_of(group)} {plugin.name} (it offers {', '.join(offered) or 'none'})"
        if found.digest != plugin.digest:
            return (
                f"has other code of the {kind_of(group)} {plugin.name}: {found.provenance}, "
                f"the server has {plugin.provenance}"
            )
    if hello.min_privacy_level != "none":
        return f"demands the privacy level {hello.min_privacy_level}, which this task does not offer"
    if settings.device == "cuda" and hello.engine.device != "cuda":
        return "has no GPU, and the task asks for one"
    return None


def _dataset(settings: TaskSettings, hello: Hello) -> DataSetInfo:
    return next(dataset for dataset in hello.datasets if dataset.name == settings.dataset)


def _engine(settings: TaskSettings, hello: Hello) -> EngineInfo:
    if settings.device == "cpu":
        return hello.engine.model_copy(update={"device": "cpu"})
    return hello.engine


def _share_out(total: int, capacities: Sequence[int]) -> list[int]:
    """`total` clients over nodes in proportion to their capacity, each at least one (largest remainder, then order)."""
    whole = sum(capacities)
    shares = [max(1, total * capacity // whole) for capacity in capacities]
    by_remainder = sorted(range(len(shares)), key=lambda i: (-(total * capacities[i] % whole), i))
    while (left := total - sum(shares)) != 0:
        step = 1 if left > 0 else -1
        for i in by_remainder:
            if left != 0 and 1 <= shares[i] + step <= capacities[i]:
                shares[i] += step
                left -= step
    return shares


def make_plan(
    *,
    task: str,
    number: int,
    settings: TaskSettings,
    hellos: Mapping[str, Hello],
    not_heard: Sequence[str],
    server_dataset: DataSetInfo | None,
    broadcast_bytes: int,
    server_problem: str | None = None,
    plugins: Mapping[str, PluginInfo],
    version: str,
) -> Plan | Waiting | Impossible:
    """Choose nodes and fix placement and chunks.

    Args:
        task: the task's uid.
        number: the task's number.
        settings: the row's settings.
        hellos: what each node that is online announced.
        not_heard: configured nodes that may still announce themselves: a task that wants all nodes waits for them.
        server_dataset: the server's own copy of the data set, if it has one, whose test set then serves.
        server_problem: why the server's own copy cannot be used, if it has one that cannot.
        broadcast_bytes: the longest `Broadcast`, as JSON, that can be sent with a model.
        plugins: each plug-in that the settings choose, by its setting, as the server has it: nodes have the same code.
        version: of the code, recorded in the plan.
    """
    reasons = {name: _unfit(settings, plugins, hello) for name, hello in hellos.items()}
    unfit = {name: reason for name, reason in reasons.items() if reason is not None}
    fit = {name: hello for name, hello in sorted(hellos.items()) if name not in unfit}
    if not fit:
        if not hellos:
            return Waiting("no node is online" + (f": waiting for {', '.join(not_heard)}" if not_heard else ""))
        if not_heard:
            return Waiting(f"no node that is online can take it; waiting for {', '.join(not_heard)}")
        return Waiting("no node can take it: " + "; ".join(f"{name} {why}" for name, why in sorted(unfit.items())))

    groups: dict[object, list[str]] = defaultdict(list)
    local = make_partitioner(settings).per_node
    for name, hello in fit.items():
        info = _dataset(settings, hello)
        # One bank's own file may lack a class that another's has.
        groups[info.feature_shape if local else info.digest].append(name)
    if settings.num_nodes == 0 and not_heard and len(groups) == 1:
        return Waiting(f"waiting for {', '.join(not_heard)} to announce themselves (or set num_nodes)")
    # A group of enough nodes whose nodes can simulate the most clients; the first name decides between equals.
    names = min(
        groups.values(),
        key=lambda group: (len(group) < settings.num_nodes, -sum(fit[name].clients for name in group), group[0]),
    )
    if settings.num_nodes:
        if len(names) < settings.num_nodes:
            return Waiting(f"{settings.num_nodes} nodes with the same data are wanted, online are {', '.join(names)}")
        names = names[: settings.num_nodes]
    plan = _fix(task, number, settings, {name: fit[name] for name in names}, server_dataset, server_problem, version)
    if not isinstance(plan, Plan):
        return plan
    return _too_long(plan, broadcast_bytes) or plan.model_copy(update={"plugins": dict(plugins)})


def _too_long(plan: Plan, broadcast_bytes: int) -> Impossible | None:
    """Whether some cohort could put more clients on a node than a model's metadata can name."""
    cohort = plan.settings.cohort_size
    last_chunk = ceil(cohort / plan.chunk_clients) + len(plan.shares)  # each node may have one that is not full
    for share in plan.shares:
        here = min(cohort, share.num_clients)
        end = share.first_client + share.num_clients
        clients = range(end - here, end)  # as many as can be drawn here, and those with the longest numbers
        starts = range(0, here, plan.chunk_clients)
        chunks = tuple(Chunk(id=last_chunk, clients=tuple(clients[at : at + plan.chunk_clients])) for at in starts)
        longest = Broadcast(chunks=chunks, used_through=plan.settings.num_rounds)
        size = len(longest.model_dump_json())
        if size > broadcast_bytes:
            return Impossible(
                f"a round can choose {here} clients on {share.node}: to list them beside the model takes {size} bytes, "
                f"{broadcast_bytes} are taken; choose a smaller fraction_train or more nodes"
            )
    return None


def _fix(
    task: str,
    number: int,
    settings: TaskSettings,
    chosen: Mapping[str, Hello],
    server_dataset: DataSetInfo | None,
    server_problem: str | None,
    version: str,
) -> Plan | Waiting | Impossible:
    """Placement, chunks and test set for the chosen nodes."""
    infos = {name: _dataset(settings, hello) for name, hello in chosen.items()}
    info = next(iter(infos.values()))
    num_classes = max(other.num_classes for other in infos.values())
    local = make_partitioner(settings).per_node
    if local:
        settings = settings.model_copy(update={"num_clients": len(chosen)})
        counts = [1] * len(chosen)
    else:
        most = most_clients(settings, info.num_train)
        if settings.num_clients > most:
            return Impossible(f"{info.name}: {too_many_clients(settings, info.num_train, most)}")
        capacities = [hello.clients for hello in chosen.values()]
        if sum(capacities) < settings.num_clients:
            return Waiting(
                f"{settings.num_clients} clients are wanted, the nodes {', '.join(chosen)} "
                f"can simulate {sum(capacities)} together"
            )
        if settings.num_clients < len(chosen):
            chosen = dict(list(chosen.items())[: settings.num_clients])
            capacities = capacities[: settings.num_clients]
        counts = _share_out(settings.num_clients, capacities)

    testset_from: str | None = None
    usable = server_dataset is not None and server_dataset.num_test > 0
    if server_dataset is not None and usable:
        # A test set may well lack a class; one that the nodes do not have cannot be tested.
        fits = server_dataset.num_classes <= num_classes if local else server_dataset.num_classes == num_classes
        if server_dataset.feature_shape != info.feature_shape or not fits:
            return Impossible(
                f"the server's data set {info.name} has features {server_dataset.feature_shape} and "
                f"{server_dataset.num_classes} classes, the nodes' has {info.feature_shape} and {num_classes}"
            )
    if not usable:
        sharing = [name for name in chosen if infos[name].share_test and infos[name].num_test > 0]
        problem = "it has no test set" if server_dataset is not None else server_problem
        if not sharing and problem is not None:
            return Waiting(f"the server's own data set {info.name} cannot be used: {problem}")
        if not sharing:
            return Impossible(
                f"there is no test set of {info.name}: put one into the server's data folder, "
                "or let a node share its own (`share: true` at the data set in its client.yml)"
            )
        testset_from = sharing[0]

    shares = []
    first = 0
    for (name, hello), count in zip(chosen.items(), counts, strict=True):
        engine = _engine(settings, hello)
        share = NodeShare(
            node=name, first_client=first, num_clients=count, engine=engine, dataset_digest=infos[name].digest
        )
        shares.append(share)
        first += count
    workers = sum(chosen[share.node].workers for share in shares)
    return Plan(
        task=task,
        number=number,
        settings=settings,
        shares=tuple(shares),
        chunk_clients=min(MAX_CHUNK_CLIENTS, max(1, ceil(settings.cohort_size / workers))),
        dataset_digest=None if local else info.digest,
        model_spec=ModelSpec.of(settings, info.feature_shape, num_classes),
        uplink=make_strategy(settings).uplink,
        testset_from=testset_from,
        version=version,
    )
