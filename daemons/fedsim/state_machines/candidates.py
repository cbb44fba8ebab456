"""Which nodes take part in a task, in which order of columns and labels, and why others that are online do not."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsim.config import TaskLimits
from fedsim.data_schema import DataSchema, some, unknown_words
from fedsim.learning.conform import most_common, task_words
from fedsim.learning.objectives import make_objective
from fedsim.learning.partitions import make_partitioner
from fedsim.messages import DataSetInfo, Hello, PluginInfo
from fedsim.plugin_settings import plugin_group
from fedsim.plugins import ATTACKS, kind_of
from fedsim.settings import TaskSettings
from fedsim.speed import SpeedRequest
from fedsim.state_machines.guarded import unwilling


@dataclass(frozen=True)
class Waiting:
    """The task cannot start yet; `reason` says what it waits for, so that a person can act."""

    reason: str


@dataclass(frozen=True)
class Measuring(Waiting):
    """The task waits until nodes have measured how they train it; `requests` says what, by node."""

    requests: Mapping[str, SpeedRequest]


@dataclass(frozen=True)
class Impossible:
    """The task can never run here as it is; `reason` says why and what would."""

    reason: str


@dataclass(frozen=True)
class Chosen:
    """The nodes that take part.

    Attributes:
        hellos: their announcements, by name, in the order of the names.
        data_schema: the order of columns and labels in this task, with its number of classes.
        schema_from: the node whose order of columns that is.
        left_out: the nodes that are online and do not take part, and why.
    """

    hellos: dict[str, Hello]
    data_schema: DataSchema
    num_classes: int
    schema_from: str
    left_out: dict[str, str]


def dataset_of(settings: TaskSettings, hello: Hello) -> DataSetInfo:
    """The task's data set on a node that has it."""
    return next(dataset for dataset in hello.datasets if dataset.name == settings.dataset)


def choose_nodes(
    settings: TaskSettings,
    plugins: Mapping[str, PluginInfo],
    hellos: Mapping[str, Hello],
    not_heard: Sequence[str],
    server_dataset: DataSetInfo | None,
    limits: TaskLimits,
    known_digest: str | None,
) -> Chosen | Waiting:
    """Choose nodes whose numbers mean the same; see `make_plan` for the arguments.

    With `nodes` exactly those take part, and the schema is that of the first one listed. Else the schema is that of
    most nodes; of equally common orders of columns the first node's by name. With the partitions `local` and `natural`,
    and where the data is guarded, each node has its own data; otherwise all have the same arrays.
    """
    candidates = _Candidates(settings, dict(sorted(hellos.items())))
    candidates.drop_unnamed()
    for name, hello in list(candidates.fit.items()):
        reason = (
            _unfit(settings, plugins, hello)
            or _beyond(limits, settings, hello)
            or _wrong_targets(settings, dataset_of(settings, hello))
            or unwilling(settings, hello, dataset_of(settings, hello))
            or candidates.unknown(name, known_digest)
        )
        if reason is not None:
            candidates.leave_out(name, reason)
    if (waiting := candidates.required_missing(not_heard)) is not None:
        return waiting
    if not candidates.fit:
        return candidates.nothing_fits(not_heard)
    if candidates.keep_largest_group() == 1 and settings.num_nodes == 0 and not_heard and not settings.nodes:
        return Waiting(f"waiting for {', '.join(not_heard)} to announce themselves (or set num_nodes)")
    candidates.drop_copies()
    words = candidates.keep_words(server_dataset)
    if (waiting := candidates.required_missing(not_heard)) is not None:
        return waiting
    if (waiting := candidates.take_wanted()) is not None:
        return waiting
    return candidates.chosen(words)


class _Candidates:
    """The nodes that are still `fit` to take part, and those that are `left_out` by now, with the reasons."""

    def __init__(self, settings: TaskSettings, hellos: dict[str, Hello]) -> None:
        self.settings = settings
        self.fit = hellos
        self.left_out: dict[str, str] = {}
        self.local = make_partitioner(settings).per_node
        self.natural = make_partitioner(settings).natural

    def info(self, name: str) -> DataSetInfo:
        """The task's data set on a node."""
        return dataset_of(self.settings, self.fit[name])

    def own_data(self, name: str) -> bool:
        """Whether the node's clients are formed from its own data, whatever other nodes have."""
        return self.local or self.natural or self.info(name).guard is not None

    def unknown(self, name: str, known_digest: str | None) -> str | None:
        """Why a node's copy of the data is not the known one, or None."""
        info = self.info(name)
        if self.own_data(name) or known_digest in {None, info.digest}:
            return None
        return (
            f"has other data (digest {info.digest[:12]}) than what is known as {info.name} ({str(known_digest)[:12]}); "
            f"if that was renewed on all nodes, let it be learnt again: fedsim admin datasets --forget {info.name}"
        )

    def schema(self, name: str) -> DataSchema:
        """The schema of the task's data set on a node; nodes that announce none are left out before."""
        schema = self.info(name).data_schema
        if schema is None:
            raise ValueError(f"{name} announces no schema")
        return schema

    def leave_out(self, name: str, reason: str) -> None:
        """Let a node take no part."""
        del self.fit[name]
        self.left_out[name] = reason

    def drop_unnamed(self) -> None:
        """Leave out what the setting `nodes` does not name."""
        if wanted := self.settings.nodes:
            for name in [name for name in self.fit if name not in wanted]:
                self.leave_out(name, f"is not named by the task, which takes the nodes {', '.join(wanted)}")

    def required_missing(self, not_heard: Sequence[str]) -> Waiting | None:
        """What a task waits for that names a node which cannot take part."""
        missing = [name for name in self.settings.nodes if name not in self.fit]
        if not missing:
            return None
        reasons = [f"{name} {self.left_out.get(name) or _absent(name, not_heard)}" for name in missing]
        return Waiting("the task names nodes that cannot take part: " + "; ".join(reasons))

    def nothing_fits(self, not_heard: Sequence[str]) -> Waiting:
        """What a task waits for that no node can take."""
        if not self.left_out:
            return Waiting("no node is online" + (f": waiting for {', '.join(not_heard)}" if not_heard else ""))
        if not_heard:
            return Waiting(f"no node that is online can take it; waiting for {', '.join(not_heard)}")
        return Waiting(f"no node can take it: {self._reasons()}")

    def _reasons(self) -> str:
        return "; ".join(f"{name} {why}" for name, why in sorted(self.left_out.items()))

    def keep_largest_group(self) -> int:
        """Leave out nodes with other data than the first named one, or than most; returns the number of groups."""
        groups: dict[object, list[str]] = defaultdict(list)
        for name in self.fit:
            info, schema = self.info(name), self.schema(name)
            # With `local` the files differ, and one bank's may lack a class that another's has.
            key = schema.features_key if self.own_data(name) else info.digest + schema.model_dump_json()
            groups[info.feature_shape, key, not self.local and info.guard is not None].append(name)

        def rank(group: list[str]) -> tuple[bool, int, str]:
            """A group of enough nodes that has the most nodes, or can simulate the most clients."""
            strength = len(group) if self.local else sum(self.fit[name].clients for name in group)
            return len(group) < self.settings.num_nodes, -strength, group[0]

        if self.settings.nodes:
            group = next(names for names in groups.values() if self.settings.nodes[0] in names)
        else:
            group = min(groups.values(), key=rank)
        for name in [name for name in self.fit if name not in group]:
            self.leave_out(name, self._difference(name, group[0]))
        return len(groups)

    def _difference(self, name: str, other: str) -> str:
        info, its, whose = self.info(name), self.info(other), f"the data of {other}"
        if text := self.schema(name).difference(self.schema(other), whose=whose):
            return text
        if info.feature_shape != its.feature_shape:
            return f"has examples of the shape {list(info.feature_shape)}, {whose} {list(its.feature_shape)}"
        if (info.guard is None) != (its.guard is None):
            return f"{'guards its data' if info.guard else 'has open data'}, unlike {other} (access in client.yml)"
        if info.digest != its.digest:
            return f"has other data (digest {info.digest[:12]}) than {other} ({its.digest[:12]})"
        return f"numbers its labels otherwise, or orders its columns otherwise, than {other}"

    def drop_copies(self) -> None:
        """With `natural`: leave out nodes whose data another one has, unless all have the same: each client is one."""
        first: dict[str, str] = {}
        for name in self.fit:
            first.setdefault(self.info(name).digest, name)
        if not self.natural or len(first) == 1:
            return
        for name in [name for name in self.fit if first[self.info(name).digest] != name]:
            other = first[self.info(name).digest]
            self.leave_out(name, f"has the same data as {other}, whose clients would take part twice")

    def keep_words(self, server_dataset: DataSetInfo | None) -> tuple[str, ...]:
        """Fix the words of the task's classes, and leave out nodes that have others."""
        words = {name: self.schema(name).words(self.info(name).num_classes) for name in self.fit}
        if self.settings.nodes:
            known = words[self.settings.nodes[0]]
        else:
            served = server_dataset.data_schema if server_dataset is not None else None
            tested = served.words(server_dataset.num_classes) if served is not None and server_dataset else ()
            known = task_words(list(words.values()), tested)
        for name, own in words.items():
            if unknown := unknown_words(own, known):
                plural = "s" if len(unknown) > 1 else ""
                why = f"has the label{plural} {some(unknown)}, which the task does not have (it has {some(known)})"
                self.leave_out(name, why)
        return known

    def take_wanted(self) -> Waiting | None:
        """Take as many nodes as the task wants, by name; None if there are enough."""
        wanted = self.settings.num_nodes
        if len(self.fit) < wanted:
            others = f"; {self._reasons()}" if self.left_out else ""
            return Waiting(f"{wanted} nodes with the same data are wanted, online are {', '.join(self.fit)}{others}")
        for name in list(self.fit)[wanted:] if wanted else ():
            self.leave_out(name, f"is not needed: the task takes {wanted} nodes")
        return None

    def chosen(self, words: tuple[str, ...]) -> Chosen:
        """The nodes that are left, and the order of columns of most of them."""
        names = list(self.fit)
        orders = ["\n".join(self.schema(name).features) for name in names]
        first = self.settings.nodes[0] if self.settings.nodes else names[most_common(orders)]
        schema = self.schema(first).with_words(words)
        return Chosen(self.fit, schema, max(len(words), schema.least_outputs), first, self.left_out)


def _absent(name: str, not_heard: Sequence[str]) -> str:
    return "has not announced itself yet" if name in not_heard else "is not online"


def _unfit(settings: TaskSettings, plugins: Mapping[str, PluginInfo], hello: Hello) -> str | None:
    """Why this node cannot take part, or None."""
    if not hello.accept_tasks:
        return "accepts no new tasks at present (accept_tasks in its client.yml)"
    if settings.dataset not in {dataset.name for dataset in hello.datasets}:
        has = ", ".join(dataset.name for dataset in hello.datasets) or "none"
        return f"has no data set {settings.dataset} (it has {has})"
    for setting, plugin in plugins.items():
        group = plugin_group(setting)
        offered = hello.offers(group)
        found = offered.get(plugin.name)
        if found is None and group == ATTACKS:
            return f"does not allow the attack {plugin.name} (institution.attacks in its client.yml)"
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
    if dataset_of(settings, hello).data_schema is None:
        return (
            f"does not announce the columns and labels of {settings.dataset} (version {hello.version}): "
            "upgrade it, or see its problems on the page Nodes"
        )
    return None


def _wrong_targets(settings: TaskSettings, info: DataSetInfo) -> str | None:
    """Why the task's objective cannot be minimised on this data, or None."""
    if not settings.trains:
        return None
    targets = "classes" if info.data_schema is None else info.data_schema.targets
    problem = make_objective(settings).problem(targets, info.feature_shape, info.num_classes)
    return f"{problem} ({settings.objective}): choose another objective or data set" if problem else None


def _beyond(limits: TaskLimits, settings: TaskSettings, hello: Hello) -> str | None:
    """What this node announces of the data set that server.yml does not allow, or None."""
    info = dataset_of(settings, hello)
    for number, most, what in (
        (info.num_classes, limits.max_classes, "classes"),
        (math.prod(info.feature_shape), limits.max_features, "features"),
        (info.num_train, limits.max_examples, "examples"),
    ):
        if number > most:
            return f"announces {number:,} {what} of {info.name}, server.yml allows {most:,} (limits.max_{what})"
    return None
