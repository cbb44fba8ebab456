"""Builds a node's `hello` so that it always fits into a message, with a note about what was omitted."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

from pydantic import ValidationError

from fedsim import __version__, plugins
from fedsim.config import ClientConfig
from fedsim.config.institution import Institution
from fedsim.forwarding_offer import ForwardingOffer
from fedsim.label_counts import MOST_COUNTS, MOST_LABELS, shown_counts
from fedsim.memory import usable_processors
from fedsim.messages import (
    MAX_LISTED,
    MAX_PLUGINS,
    MAX_PROBLEMS,
    MAX_RUNS,
    MAX_SCHEMA_BYTES,
    MAX_SPEEDS,
    DataSetInfo,
    EngineInfo,
    Hello,
    PluginInfo,
    SpeedInfo,
    TaskReport,
    as_text,
)
from fedsim.plugin_settings import TASK_GROUPS
from fedsim.state_machines.own_engines import announced_options, offered_engines
from fedsim.wire.peer import Peer
from fedsim.worker.inspector import Inspected

Listed = TypeVar("Listed", DataSetInfo, PluginInfo, TaskReport)


def host_name(server: Peer) -> str:
    """The name of this machine and the address from which it reaches the server, for people."""
    name = socket.gethostname()[:255]
    try:
        family, _, _, _, address = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return f"{name} ({probe.getsockname()[0]})"
    except OSError:  # no route at present
        return name


def make_hello(
    config: ClientConfig,
    seen: Inspected,
    reports: Iterable[TaskReport],
    remarks: Iterable[str],
    speeds: Sequence[SpeedInfo] = (),
) -> Hello:
    """Build the announcement: what the node offers, the state of its tasks, and problems for its administrator.

    Args:
        config: the node's.
        seen: its data sets.
        reports: of its tasks, oldest first.
        remarks: what is to be reported besides the data sets' own problems.
        speeds: what it has measured, the newest last.
    """
    problems = [*remarks]  # notes about omissions precede the data sets' problems, of which there may be many
    shared = {dataset.name for dataset in config.datasets if dataset.share}
    counts = _label_counts(config, seen.datasets, problems)
    datasets = [
        dataset.model_copy(
            update={
                "label_counts": counts.get(dataset.name),
                "share_test": dataset.name in shared,
                "require_approval": config.requires_approval(dataset.name),
            }
        )
        for dataset in _within_bytes(seen.datasets, problems)
    ]
    tasks = _within_runs(reports, problems)
    return Hello(
        node=config.name,
        version=__version__,
        sent_at=time.time(),
        clients=config.clients,
        accept_tasks=config.accept_tasks,
        forwarding=_forwarding(config),
        workers=config.fixed_workers or usable_processors(),
        measures=config.measures,
        engines=offered_engines(config),
        speeds=tuple(speeds[-MAX_SPEEDS:]),
        engine=EngineInfo(
            name=offered_engines(config)[0],
            options=announced_options(config),
            device=seen.device,
            threads=config.idle_threads,
            processor=seen.processor,
            torch=seen.torch,
        ),
        datasets=_first(datasets, "data sets", problems),
        plugins=_plugins(config.institution, problems),
        min_examples=config.institution.min_examples,
        min_clients=config.institution.min_clients,
        individual_updates=config.institution.individual_updates,
        min_privacy_level=config.institution.min_privacy_level,
        statistics=config.institution.statistics,
        tasks=_first(tasks, "tasks", problems),
        problems=_some([*problems, *seen.problems]),
    )


def _forwarding(config: ClientConfig) -> ForwardingOffer:
    """What the owner allows of models that travel from node to node; that takes a receiver."""
    return ForwardingOffer(**config.forwarding.model_dump()) if config.listens else ForwardingOffer()


def _plugins(institution: Institution, problems: list[str]) -> dict[str, tuple[PluginInfo, ...]]:
    """The installed plug-ins that the institution allows, by group, without those that cannot be used or named."""
    offered = {}
    for group in TASK_GROUPS:
        allowed = institution.allows(group)
        found = []
        for plugin in plugins.describe(group):
            if allowed is not None and plugin.name not in allowed:
                continue
            if plugin.provenance is None:
                problems.append(plugin.problem)
                continue
            try:
                found.append(PluginInfo.of(plugin.name, plugin.provenance))
            except ValidationError:
                problems.append(
                    f"the {plugins.kind_of(group)} {plugin.name!r} cannot be offered: its package must give it a "
                    "simpler name"
                )
        kind = plugins.short_name(group)
        offered[kind] = _first(found, kind, problems, MAX_PLUGINS)
    return offered


def _within_bytes(datasets: Iterable[DataSetInfo], problems: list[str]) -> list[DataSetInfo]:
    """Include schemas as far as they fit; a data set without one takes part in no task."""
    left = MAX_SCHEMA_BYTES
    fitting = []
    for dataset in datasets:
        size = 0 if dataset.data_schema is None else len(dataset.data_schema.model_dump_json().encode())
        if size > left:
            problems.append(
                f"the columns and labels of the data set {dataset.name} take {size} bytes, of {left} that are left "
                "for an announcement: it cannot be used; give them shorter names, or list fewer data sets"
            )
            fitting.append(dataset.model_copy(update={"data_schema": None}))
        else:
            left -= size
            fitting.append(dataset)
    return fitting


def _label_counts(
    config: ClientConfig, datasets: Iterable[DataSetInfo], problems: list[str]
) -> dict[str, tuple[int | None, ...]]:
    """The counts of labels that owners show, by data set and by the institution's rules, as far as they fit."""
    left, fitting = MOST_COUNTS, {}
    for dataset in (one for one in config.datasets if one.show_labels):
        for info in (info for info in datasets if info.name == dataset.name):
            if info.label_counts is None:
                problems.append(f"the data set {info.name} has more than {MOST_LABELS} labels: they are not counted")
            elif len(info.label_counts) > left:
                problems.append(f"the counts of the labels of {info.name} do not fit next to those of other data sets")
            else:
                left -= len(info.label_counts)
                least, guarded = config.institution.min_count, info.guard is not None
                fitting[info.name] = shown_counts(info.label_counts, least, guarded=guarded)
    return fitting


def _within_runs(reports: Iterable[TaskReport], problems: list[str]) -> list[TaskReport]:
    """Include numbers of examples as far as they fit; a task without them is reported as loading."""
    left = MAX_RUNS
    fitting = []
    for report in reports:
        left -= len(report.num_examples)
        if left >= 0:
            fitting.append(report)
        else:
            left += len(report.num_examples)
            fitting.append(report.model_copy(update={"state": "loading", "num_examples": ()}))
            problems.append(
                f"the sizes of the clients of the task {report.task} do not fit next to those of other tasks: "
                "it waits until one of them has ended"
            )
    return fitting


def _first(items: Sequence[Listed], what: str, problems: list[str], most: int = MAX_LISTED) -> tuple[Listed, ...]:
    if len(items) > most:
        problems.append(f"there are {len(items)} {what} here, only the first {most} are listed")
    return tuple(items[:most])


def _some(problems: Sequence[str]) -> tuple[str, ...]:
    if len(problems) <= MAX_PROBLEMS:
        return tuple(map(as_text, problems))
    reported = problems[: MAX_PROBLEMS - 1]
    return (*map(as_text, reported), f"and {len(problems) - len(reported)} more problems, see this node's log")
