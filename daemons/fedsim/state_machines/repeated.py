"""Running a task again with its recorded plan, or saying why the result is not comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.learning.partitions import make_partitioner
from fedsim.messages import DataSetInfo, Hello
from fedsim.settings import TaskSettings
from fedsim.state_machines.candidates import Waiting
from fedsim.state_machines.guarded import least_chunk
from fedsim.state_machines.shares import NodeShare, RecordedPlan
from fedsim.state_machines.speeds import NodeManner, engine_of, engines_of


@dataclass(frozen=True)
class Repeats:
    """The task that is run again, and its plan; None: none is recorded, or the task is deleted."""

    number: int
    plan: RecordedPlan | None

    def not_comparable(self, why: str) -> str:
        """The note on a run that has another plan."""
        return f"not comparable with task {self.number}: {why}"


@dataclass(frozen=True)
class Again:
    """The recorded plan, if it is taken, and the note on that."""

    plan: RecordedPlan | None
    note: str


def take_plan(
    repeats: Repeats, settings: TaskSettings, hellos: Mapping[str, Hello], not_heard: Sequence[str], version: str
) -> Again | Waiting:
    """Take the recorded plan where every node can still do it; wait for nodes that may still announce themselves."""
    plan = repeats.plan
    if plan is None:
        return Again(None, repeats.not_comparable("its plan is not recorded"))
    if awaited := [share.node for share in plan.shares if share.node in not_heard]:
        return Waiting(f"{', '.join(awaited)}, which took part in task {repeats.number}")
    why = _misfit(plan, settings, hellos, version)
    if why is not None:
        return Again(None, repeats.not_comparable(why))
    return Again(plan, f"it has the plan of task {repeats.number}")


def on_the_same_nodes(settings: TaskSettings, plan: RecordedPlan) -> TaskSettings:
    """Settings that choose the nodes of the plan, and the same order of columns."""
    names = sorted((share.node for share in plan.shares), key=lambda name: (name != plan.schema_from, name))
    return settings.model_copy(update={"nodes": tuple(names), "num_nodes": 0})


def recorded_manner(share: NodeShare) -> NodeManner:
    """How a node trained."""
    return NodeManner(share.engine, share.workers, share.chunk_clients)


def _misfit(plan: RecordedPlan, settings: TaskSettings, hellos: Mapping[str, Hello], version: str) -> str | None:
    """Why the plan does not fit a task with these settings now, or None."""
    names = [share.node for share in plan.shares]
    if plan.version != version:
        return f"it ran with fedsim {plan.version}, this is {version}"
    if gone := [name for name in names if name not in hellos]:
        return f"{', '.join(gone)} took part and cannot now"
    clients = sum(share.num_clients for share in plan.shares)
    if not make_partitioner(settings).per_node and clients != settings.num_clients:
        return f"it had {clients} clients, this one has {settings.num_clients}"
    if make_partitioner(settings).per_node and clients != len(names):
        return f"it had {clients} clients, this one has one for each node"
    if settings.nodes and set(settings.nodes) != set(names):
        return f"it ran on the nodes {', '.join(names)}"
    if settings.num_nodes not in {0, len(names)}:
        return f"it ran on {len(names)} nodes, this one takes {settings.num_nodes}"
    for share in plan.shares:
        hello = hellos[share.node]
        if (why := _other_data(share, settings, hello) or _other_engine(share, settings, hello)) is not None:
            return f"{share.node} {why}"
    least = least_chunk(hellos[name] for name in names)
    if any((share.chunk_clients or plan.chunk_clients) < least for share in plan.shares):
        return f"institutions demand chunks of {least} clients by now"
    return None


def _other_data(share: NodeShare, settings: TaskSettings, hello: Hello) -> str | None:
    found = next((dataset for dataset in hello.datasets if dataset.name == settings.dataset), None)
    if found is None:
        return f"has no data set {settings.dataset}"
    if found.digest != share.dataset_digest or _guard(found) != share.guard:
        return f"has other data as {settings.dataset}"
    if hello.clients < share.num_clients:
        return f"simulates {hello.clients} clients, and had {share.num_clients}"
    return None


def _guard(info: DataSetInfo) -> str | None:
    return None if info.guard is None else info.guard.secret_digest


def _other_engine(share: NodeShare, settings: TaskSettings, hello: Hello) -> str | None:
    """Why the node cannot train as it did."""
    then, now = share.engine, engine_of(settings, hello)
    for name in ("torch", "processor", "device"):
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            return f"has the {name} {after or 'unknown'}, and had {before or 'unknown'}"
    if then.name not in engines_of(hello):
        return f"trains with the engine {' or '.join(engines_of(hello))}, and did with {then.name}"
    if then.name == now.name and then.options != now.options:
        return f"has other options of the engine {now.name} (engine_options in its client.yml)"
    if not hello.measures and then.threads != now.threads:
        return f"trains with {now.threads} threads in each worker, and did with {then.threads}"
    if (share.workers or 1) > hello.workers:
        return f"has at most {hello.workers} workers, and had {share.workers}"
    return None
