"""What is fixed before round 1: the nodes that take part, the placement of clients, the chunks of cohorts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import Annotated

from pydantic import Field

from fedsim.config import TaskLimits
from fedsim.data_schema import DataSchema
from fedsim.initial import InitialModel
from fedsim.learning.attacks import attack_note
from fedsim.learning.buffering import Buffering, drawn_chunks
from fedsim.learning.buffering_checks import buffering_of
from fedsim.learning.cohort import ChunkPlan, cut_chunks
from fedsim.learning.partitions import make_partitioner
from fedsim.learning.samplers import NOTHING_KNOWN, Known, make_sampler
from fedsim.learning.strategies import make_strategy
from fedsim.messages import (
    Assignment,
    DataSetInfo,
    Hello,
    Message,
    ModelSpec,
    Name,
    PluginInfo,
    Uid,
    Uplink,
)
from fedsim.settings import TaskSettings
from fedsim.speed import USUAL_CHUNK_CLIENTS
from fedsim.state_machines.candidates import Chosen, Impossible, Measuring, Waiting, choose_nodes, dataset_of
from fedsim.state_machines.guarded import capacity, guarded_notes, least_chunk, limits_of, too_few_clients, too_many
from fedsim.state_machines.plan_checks import too_long, unfit_parts
from fedsim.state_machines.repeated import Repeats, on_the_same_nodes, recorded_manner, take_plan
from fedsim.state_machines.shares import NodeShare, RecordedPlan, share_out, with_labels
from fedsim.state_machines.speeds import known_speed, manner_of, not_measured, own_workers, speed_request, unmeasured
from fedsim.state_machines.testset_choice import OwnTestSet, choose_test_set


class Plan(Message):
    """Everything that is fixed before round 1 and recorded; two runs with equal plans give equal bytes."""

    task: Uid
    number: Annotated[int, Field(ge=1)]
    resumes: Uid | None = Field(None, description="The run that has ended, and that this one continues")
    continued_after: int | None = Field(None, description="The rounds after which it was complete, before it got more")
    user: str = ""
    settings: TaskSettings
    shares: tuple[NodeShare, ...]
    chunk_clients: int
    initial: InitialModel | None = Field(None, description="What the first model comes from; None: its own start")
    dataset_digest: str | None = Field(description="The same on every node; None where each has its own data")
    own_clients: bool = Field(
        False, description="With `natural`: whether the nodes' data, and so their clients, differ"
    )
    model_spec: ModelSpec
    data_schema: DataSchema | None = Field(None, description="The order of columns and labels in this task")
    schema_from: Name | None = Field(None, description="The node whose order of columns that is")
    left_out: tuple[tuple[Name, str], ...] = Field((), description="Nodes that were online and take no part, and why")
    notes: tuple[str, ...] = Field((), description="What is to be said about the data")
    uplink: Uplink = Field(description="What the strategy needs of each chunk")
    buffering: Buffering | None = Field(None, description="Of asynchronous rounds; None: rounds wait for their cohorts")
    least_updates: int = Field(1, description="A round waits for so many updates, whatever its deadline")
    testset_from: Name | None = Field(description="The node that sends its test set; None: the server has its own")
    max_node_weight: float = Field(1, description="A larger share of the examples at one node is noted")
    prepare_timeout_seconds: float = Field(3600, description="For loading the data and sending the test set")
    version: str
    plugins: dict[Name, PluginInfo] = Field({}, description="Each plug-in as the server has it, by its setting")

    @property
    def guarded(self) -> bool:
        """Whether the data of some node is guarded: exact counts of examples stay on server and nodes."""
        return any(share.guard is not None for share in self.shares)

    @property
    def placement(self) -> tuple[tuple[int, int], ...]:
        """(first client, number of clients) of each node, in the plan's order."""
        return tuple((share.first_client, share.num_clients) for share in self.shares)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes, in the plan's order."""
        return tuple(share.node for share in self.shares)

    @property
    def record(self) -> RecordedPlan:
        """What is recorded of it with the task's row."""
        return RecordedPlan(
            shares=tuple(share.shown for share in self.shares),
            chunk_clients=self.chunk_clients,
            schema_from=self.schema_from,
            version=self.version,
        )

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """The most clients in a chunk of each node, in the plan's order."""
        return tuple(share.chunk_clients or self.chunk_clients for share in self.shares)

    def cohort(self, round_number: int, known: Known = NOTHING_KNOWN) -> tuple[int, ...]:
        """The round's cohort: a pure function of the plan, and of what is `known` where the sampler needs that."""
        settings = self.settings
        size, population = settings.cohort_size, settings.num_clients
        return make_sampler(settings).draw_known(settings.seed, round_number, population, size, known)

    def chunks(self, round_number: int, cohort: Sequence[int] = ()) -> tuple[ChunkPlan, ...]:
        """The round's cohort, cut into chunks: a pure function of the plan, unless the `cohort` was recorded."""
        if self.buffering is not None:
            return drawn_chunks(self.settings.seed, round_number, self.placement, self.buffering.size)
        return cut_chunks(cohort or self.cohort(round_number), self.placement, self.chunk_sizes)

    @property
    def _slots(self) -> list[int]:
        """How many clients each node trains at once: its part of the concurrency M, at least one."""
        clients = [share.num_clients for share in self.shares]
        at_once = 0 if self.buffering is None else self.buffering.concurrency
        return share_out(min(max(at_once, len(clients)), sum(clients)), clients)

    def assignment(self, node: str) -> Assignment:
        """What is sent to a node as `initparam`."""
        share = next(share for share in self.shares if share.node == node)
        return Assignment(
            task=self.task,
            number=self.number,
            settings=self.settings,
            dataset_digest=share.dataset_digest,
            guard=share.guard,
            first_client=share.first_client,
            num_clients=share.num_clients,
            own_clients=self.own_clients,
            model_spec=self.model_spec,
            data_schema=self.data_schema,
            engine=share.engine,
            workers=share.workers,
            uplink=self.uplink,
            slots=None if self.buffering is None else self._slots[self.nodes.index(node)],
            send_testset=self.testset_from == node,
            user=self.user,
            resumes=self.resumes,
        )


def make_plan(
    *,
    task: str,
    number: int,
    user: str = "",
    settings: TaskSettings,
    hellos: Mapping[str, Hello],
    not_heard: Sequence[str],
    server_dataset: DataSetInfo | None,
    limits: TaskLimits,
    testset_from: str = "",
    known_digest: str | None = None,
    broadcast_bytes: int,
    server_problem: str | None = None,
    plugins: Mapping[str, PluginInfo],
    version: str,
    measured_late: Collection[str] = (),
    repeats: Repeats | None = None,
) -> Plan | Waiting | Impossible:
    """Choose nodes and fix placement and chunks.

    Args:
        task: the task's uid.
        number: the task's number.
        user: who submitted it.
        settings: the row's settings.
        hellos: what each node that is online announced.
        not_heard: configured nodes that may still announce themselves: a task that wants all nodes waits for them.
        server_dataset: the server's own copy of the data set, if it has one, whose test set then serves.
        server_problem: why the server's own copy cannot be used, if it has one that cannot.
        limits: of server.yml.
        testset_from: of server.yml, for tasks that name no node for their test set; may be empty.
        known_digest: that the data set has where all nodes have the same; None: not known yet.
        broadcast_bytes: the longest `Broadcast`, as JSON, that can be sent with a model.
        plugins: each plug-in that the settings choose, by its setting, as the server has it: nodes have the same code.
        version: of the code, recorded in the plan.
        measured_late: nodes that have not measured their speed in time, which are not waited for any more.
        repeats: the task that is run again.
    """
    recorded, notes = None, []
    if repeats is not None:
        again = take_plan(repeats, settings, hellos, not_heard, version)
        if isinstance(again, Waiting):
            return again
        recorded, notes = again.plan, [again.note]

    def choose(wanted: TaskSettings) -> Chosen | Waiting:
        return choose_nodes(wanted, plugins, hellos, not_heard, server_dataset, limits, known_digest)

    chosen = choose(settings if recorded is None else on_the_same_nodes(settings, recorded))
    if recorded is not None and repeats is not None and isinstance(chosen, Waiting):
        recorded, notes = None, [repeats.not_comparable(chosen.reason)]
        chosen = choose(settings)
    if isinstance(chosen, Waiting):
        return chosen
    test = OwnTestSet(server_dataset, server_problem, settings.testset_from or testset_from)
    plan = _fix(
        task,
        number,
        settings,
        chosen,
        test,
        limits,
        version=version,
        plugins=plugins,
        measured_late=measured_late,
        recorded=recorded,
    )
    if not isinstance(plan, Plan):
        return plan
    if (problem := too_few_clients(plan, hellos)) is not None:
        return Impossible(problem)
    infos = {name: dataset_of(settings, hellos[name]) for name in plan.nodes}
    shares = with_labels(plan.shares, infos, each=make_partitioner(settings).per_node)
    further = {"shares": shares, "user": user, "plugins": dict(plugins), "notes": (*plan.notes, *notes)}
    return too_long(plan, broadcast_bytes) or plan.model_copy(update=further)


def _fix(
    task: str,
    number: int,
    settings: TaskSettings,
    chosen: Chosen,
    own: OwnTestSet,
    limits: TaskLimits,
    *,
    version: str,
    plugins: Mapping[str, PluginInfo],
    measured_late: Collection[str],
    recorded: RecordedPlan | None,
) -> Plan | Waiting | Impossible:
    """Placement, chunks and test set for the chosen nodes; as recorded of another run, where its plan fits."""
    hellos, left_out = chosen.hellos, dict(chosen.left_out)
    infos = {name: dataset_of(settings, hello) for name, hello in hellos.items()}
    info = infos[chosen.schema_from]
    local, natural = make_partitioner(settings).per_node, make_partitioner(settings).natural
    own_clients = natural and len({infos[name].digest for name in hellos}) > 1
    own_data = local or own_clients or info.guard is not None
    if local:
        settings = settings.model_copy(update={"num_clients": len(hellos)})
        counts = [1] * len(hellos)
    elif recorded is not None:
        counts = [share.num_clients for share in recorded.shares]
    else:
        if not own_data and (problem := too_many(settings, info)):
            return Impossible(problem)
        capacities = [
            hello.clients if natural and not own_clients else capacity(settings, hello, infos[name])
            for name, hello in hellos.items()
        ]
        if sum(capacities) < settings.num_clients:
            return Waiting(
                f"{settings.num_clients} clients are wanted, the nodes {', '.join(hellos)} "
                f"can simulate {sum(capacities)} together{limits_of(own_clients, own_data)}"
            )
        if settings.num_clients < len(hellos):
            unused = list(hellos)[settings.num_clients :]
            left_out |= dict.fromkeys(unused, f"is not needed: the task has {settings.num_clients} clients")
            hellos = dict(list(hellos.items())[: settings.num_clients])
            capacities = capacities[: settings.num_clients]
        counts = share_out(settings.num_clients, capacities)

    notes = [f"{name}: {note}" for name in hellos for note in infos[name].notes]
    notes += guarded_notes(infos, hellos)
    notes += [note] if (note := attack_note(settings)) else []
    notes += [
        f"{name} trains {count} of {settings.num_clients} clients"
        for name, count in zip(hellos, counts, strict=True)
        if len(hellos) > 1 and count > limits.max_node_weight * settings.num_clients
    ]
    where = settings.evaluation if settings.trains else "none"
    tests = choose_test_set(chosen, hellos, infos, info, own, notes, own_data=own_data, evaluation=where)
    if isinstance(tests, Waiting | Impossible):
        return tests
    model_spec = ModelSpec.of(settings, info.feature_shape, chosen.num_classes)
    requests = {} if recorded is not None else unmeasured(task, settings, hellos, infos, model_spec, plugins)
    if awaited := {name: request for name, request in requests.items() if name not in measured_late}:
        return Measuring(f"{', '.join(awaited)} to measure how to train it", awaited)
    notes += not_measured(requests)
    shares = []
    first = 0
    for number_of_node, ((name, hello), count) in enumerate(zip(hellos.items(), counts, strict=True)):
        if recorded is not None:
            manner = recorded_manner(recorded.shares[number_of_node])
        else:
            speed = known_speed(hello, speed_request(task, settings, infos[name], model_spec, plugins).key)
            manner = manner_of(settings, hello, speed, count, least_chunk(hellos.values()))
        share = NodeShare(
            node=name,
            first_client=first,
            num_clients=count,
            engine=manner.engine,
            workers=manner.workers,
            chunk_clients=manner.chunk_clients,
            dataset_digest=infos[name].digest,
            guard=None if (guard := infos[name].guard) is None else guard.secret_digest,
            num_train=infos[name].num_train,
            num_held_out=infos[name].num_held_out,
            approval=infos[name].require_approval,
        )
        shares.append(share)
        first += count
    strategy = make_strategy(settings)
    if (problem := unfit_parts(strategy, settings)) is not None:
        return Impossible(problem)
    workers = sum(share.workers or own_workers(hellos[share.node]) for share in shares)
    chunk_clients = min(USUAL_CHUNK_CLIENTS, max(1, ceil(settings.cohort_size / workers)))
    return Plan(
        task=task,
        number=number,
        settings=settings,
        shares=tuple(shares),
        chunk_clients=recorded.chunk_clients if recorded else max(chunk_clients, least_chunk(hellos.values())),
        dataset_digest=None if own_data else info.digest,
        own_clients=own_clients,
        model_spec=model_spec,
        data_schema=chosen.data_schema,
        schema_from=chosen.schema_from,
        left_out=tuple(sorted(left_out.items())),
        notes=tuple(notes),
        uplink=strategy.uplink,
        buffering=buffering_of(strategy, settings),
        least_updates=strategy.least_updates,
        testset_from=tests.node,
        max_node_weight=limits.max_node_weight,
        version=version,
    )
