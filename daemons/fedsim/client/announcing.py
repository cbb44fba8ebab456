"""What a node tells of itself: its `hello`, built so that it always fits, with a word about what does not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from fedsim import __version__
from fedsim.config import ClientConfig
from fedsim.messages import (
    MAX_LISTED,
    MAX_PROBLEMS,
    MAX_RUNS,
    DataSetInfo,
    EngineInfo,
    Hello,
    ModelInfo,
    TaskReport,
    as_text,
)
from fedsim.plugins import MODELS
from fedsim.worker.inspector import Inspected

Listed = TypeVar("Listed", DataSetInfo, ModelInfo, TaskReport)

_MODEL: TypeAdapter[ModelInfo] = TypeAdapter(ModelInfo)


def make_hello(config: ClientConfig, seen: Inspected, reports: Iterable[TaskReport], remarks: Iterable[str]) -> Hello:
    """What the node offers, how its tasks stand, and in `problems` what a person should know.

    Args:
        config: the node's.
        seen: its data sets.
        reports: of its tasks, oldest first.
        remarks: what is to be told besides the data sets' own problems.
    """
    problems = [*remarks]  # what was left out goes before the data sets' own, of which there may be many
    shared = {dataset.name for dataset in config.datasets if dataset.share}
    datasets = [dataset.model_copy(update={"share_test": dataset.name in shared}) for dataset in seen.datasets]
    tasks = _within_runs(reports, problems)
    return Hello(
        node=config.name,
        version=__version__,
        sent_at=time.time(),
        clients=config.clients,
        workers=config.workers,
        engine=EngineInfo(
            name=config.engine,
            device=seen.device,
            threads=config.threads_per_worker,
            processor=seen.processor,
            torch=seen.torch,
        ),
        datasets=_first(datasets, "data sets", problems),
        models=_first(_models(config.institution.models, problems), "models", problems),
        min_examples=config.institution.min_examples,
        min_privacy_level=config.institution.min_privacy_level,
        tasks=_first(tasks, "tasks", problems),
        problems=_some([*problems, *seen.problems]),
    )


def _models(allowed: Sequence[str] | None, problems: list[str]) -> list[ModelInfo]:
    """The installed models that the institution allows; one whose name no task could give is left out."""
    models = {}
    for point in sorted(entry_points(group=MODELS), key=lambda point: point.name):
        if allowed is not None and point.name not in allowed:
            continue
        version = as_text((point.dist.version if point.dist else None) or "", 64)
        try:
            models[point.name] = _MODEL.validate_python({"name": point.name, "version": version})
        except ValidationError:
            problems.append(f"the model {point.name!r} cannot be offered: its package must give it a plainer name")
    return list(models.values())


def _within_runs(reports: Iterable[TaskReport], problems: list[str]) -> list[TaskReport]:
    """Numbers of examples as far as there is room; a task whose are left out counts as loading until there is."""
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
                f"the sizes of the clients of the task {report.task} do not fit beside those of other tasks: "
                "it waits until one of them has ended"
            )
    return fitting


def _first(items: Sequence[Listed], what: str, problems: list[str]) -> tuple[Listed, ...]:
    if len(items) > MAX_LISTED:
        problems.append(f"there are {len(items)} {what} here, the first {MAX_LISTED} are told")
    return tuple(items[:MAX_LISTED])


def _some(problems: Sequence[str]) -> tuple[str, ...]:
    if len(problems) <= MAX_PROBLEMS:
        return tuple(map(as_text, problems))
    told = problems[: MAX_PROBLEMS - 1]
    return (*map(as_text, told), f"and {len(problems) - len(told)} more problems, which this node's log tells")
