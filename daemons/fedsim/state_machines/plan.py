"""What is fixed before round 1: the nodes that take part, the placement of clients, the chunks of cohorts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated

from pydantic import Field

from fedsim.data_schema import COMMON, DataSchema, some, unknown_words
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
from fedsim.settings import TaskSettings
from fedsim.state_machines.candidates import Chosen, Waiting, choose_nodes, dataset_of

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
    data_schema: DataSchema | None = Field(None, description="The order of columns and labels in this task")
    schema_from: Name | None = Field(None, description="The node whose order of columns that is")
    left_out: tuple[tuple[Name, str], ...] = Field((), description="Nodes that were online and take no part, and why")
    notes: tuple[str, ...] = Field((), description="What is to be said about the data")
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
            data_schema=self.data_schema,
            engine=share.engine,
            uplink=self.uplink,
            send_testset=self.testset_from == node,
        )


@dataclass(frozen=True)
class Impossible:
    """The task can never run here as it is; `reason` says why and what would."""

    reason: str


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
    chosen = choose_nodes(settings, plugins, hellos, not_heard, server_dataset)
    if isinstance(chosen, Waiting):
        return chosen
    plan = _fix(task, number, settings, chosen, server_dataset, server_problem, version)
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
        longest = Broadcast(chunks=chunks, used_through=plan.settings.num_rounds, scale=_longest_scale(plan))
        size = len(longest.model_dump_json())
        if size > broadcast_bytes:
            return Impossible(
                f"a round can choose {here} clients on {share.node}: to list them beside the model takes {size} bytes, "
                f"{broadcast_bytes} are taken; choose a smaller fraction_train or more nodes"
            )
    return None


def _longest_scale(plan: Plan) -> tuple[tuple[float, float], ...]:
    """As long as the numbers of a common scaling can be as JSON."""
    schema = plan.data_schema
    common = schema is not None and schema.scaling == COMMON
    return ((-1.2345678901234567e-100,) * 2,) * len(schema.features) if common and schema is not None else ()


def _fix(
    task: str,
    number: int,
    settings: TaskSettings,
    chosen: Chosen,
    server_dataset: DataSetInfo | None,
    server_problem: str | None,
    version: str,
) -> Plan | Waiting | Impossible:
    """Placement, chunks and test set for the chosen nodes."""
    hellos, left_out = chosen.hellos, dict(chosen.left_out)
    infos = {name: dataset_of(settings, hello) for name, hello in hellos.items()}
    info = infos[chosen.schema_from]
    local = make_partitioner(settings).per_node
    if local:
        settings = settings.model_copy(update={"num_clients": len(hellos)})
        counts = [1] * len(hellos)
    else:
        most = most_clients(settings, info.num_train)
        if settings.num_clients > most:
            return Impossible(f"{info.name}: {too_many_clients(settings, info.num_train, most)}")
        capacities = [hello.clients for hello in hellos.values()]
        if sum(capacities) < settings.num_clients:
            return Waiting(
                f"{settings.num_clients} clients are wanted, the nodes {', '.join(hellos)} "
                f"can simulate {sum(capacities)} together"
            )
        if settings.num_clients < len(hellos):
            unused = list(hellos)[settings.num_clients :]
            left_out |= dict.fromkeys(unused, f"is not needed: the task has {settings.num_clients} clients")
            hellos = dict(list(hellos.items())[: settings.num_clients])
            capacities = capacities[: settings.num_clients]
        counts = _share_out(settings.num_clients, capacities)

    notes = [f"{name}: {note}" for name in hellos for note in infos[name].notes]
    tests = _test_set(chosen, hellos, infos, info, server_dataset, server_problem, notes, local=local)
    if isinstance(tests, Waiting | Impossible):
        return tests
    shares = []
    first = 0
    for (name, hello), count in zip(hellos.items(), counts, strict=True):
        engine = _engine(settings, hello)
        share = NodeShare(
            node=name, first_client=first, num_clients=count, engine=engine, dataset_digest=infos[name].digest
        )
        shares.append(share)
        first += count
    workers = sum(hellos[share.node].workers for share in shares)
    return Plan(
        task=task,
        number=number,
        settings=settings,
        shares=tuple(shares),
        chunk_clients=min(MAX_CHUNK_CLIENTS, max(1, ceil(settings.cohort_size / workers))),
        dataset_digest=None if local else info.digest,
        model_spec=ModelSpec.of(settings, info.feature_shape, chosen.num_classes),
        data_schema=chosen.data_schema,
        schema_from=chosen.schema_from,
        left_out=tuple(sorted(left_out.items())),
        notes=tuple(notes),
        uplink=make_strategy(settings).uplink,
        testset_from=tests.node,
        version=version,
    )


@dataclass(frozen=True)
class _TestSet:
    """Where the test set comes from: a node, or the server's own."""

    node: str | None


def _test_set(
    chosen: Chosen,
    hellos: Mapping[str, Hello],
    infos: Mapping[str, DataSetInfo],
    info: DataSetInfo,
    own: DataSetInfo | None,
    problem: str | None,
    notes: list[str],
    *,
    local: bool,
) -> _TestSet | Waiting | Impossible:
    """The test set: the server's own, if it has one whose numbers mean the same, else one that a node shares."""
    if own is not None and own.num_test > 0:
        # A test set may well lack a class; one that the nodes do not have cannot be tested.
        fits = own.num_classes <= chosen.num_classes if local else own.num_classes == chosen.num_classes
        if own.feature_shape != info.feature_shape or not fits:
            return Impossible(
                f"the server's data set {info.name} has features {own.feature_shape} and "
                f"{own.num_classes} classes, the nodes' has {info.feature_shape} and {chosen.num_classes}"
            )
        if own.data_schema is not None:
            schema, whose = chosen.data_schema, f"the data of {chosen.schema_from}"
            if text := own.data_schema.difference(schema, whose=whose, scaling=False):
                return Impossible(f"the server's data set {info.name} {text}")
            known = schema.words(chosen.num_classes)
            if unknown := unknown_words(own.data_schema.words(own.num_classes), known):
                return Impossible(
                    f"the server's data set {info.name} has the labels {some(unknown)}, the nodes' has {some(known)}"
                )
            if text := own.data_schema.scaling_difference(schema, whose):
                notes.append(f"the server's test set {text}")
        return _TestSet(None)
    sharing = [name for name in hellos if infos[name].share_test and infos[name].num_test > 0]
    problem = "it has no test set" if own is not None else problem
    if sharing:
        return _TestSet(sharing[0])
    if problem is not None:
        return Waiting(f"the server's own data set {info.name} cannot be used: {problem}")
    return Impossible(
        f"there is no test set of {info.name}: put one into the server's data folder, "
        "or let a node share its own (`share: true` at the data set in its client.yml)"
    )
