"""What nodes have measured of their speed, and what a plan makes of it. No reported number is trusted beyond bounds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import ceil

from fedsim.learning.partitions import make_partitioner
from fedsim.messages import DataSetInfo, EngineInfo, Hello, ModelSpec, PluginInfo, SpeedInfo
from fedsim.settings import TaskSettings
from fedsim.speed import SpeedRequest

MAX_CHUNKS = 256
"""Most chunks of a node in a round, whatever it measured: each is a file on the server."""


@dataclass(frozen=True)
class NodeManner:
    """How a node trains a task; None where the node's own configuration and the plan's common chunk size say it."""

    engine: EngineInfo
    workers: int | None = None
    chunk_clients: int | None = None


def unmeasured(
    task: str,
    settings: TaskSettings,
    hellos: Mapping[str, Hello],
    infos: Mapping[str, DataSetInfo],
    model_spec: ModelSpec,
    plugins: Mapping[str, PluginInfo],
) -> dict[str, SpeedRequest]:
    """What each node that measures its speed is to measure for the task, unless it has."""
    if not settings.trains:
        return {}
    requests = {
        name: speed_request(task, settings, infos[name], model_spec, plugins)
        for name, hello in hellos.items()
        if hello.measures and engine_of(settings, hello).device == "cpu"
    }
    return {name: request for name, request in requests.items() if known_speed(hellos[name], request.key) is None}


def speed_request(
    task: str, settings: TaskSettings, info: DataSetInfo, model_spec: ModelSpec, plugins: Mapping[str, PluginInfo]
) -> SpeedRequest:
    """What a node is asked to measure: its clients have about as many examples as the data allows."""
    clients = 1 if make_partitioner(settings).per_node else settings.num_clients
    return SpeedRequest.of(task, settings, model_spec, plugins, info.num_train // clients)


def known_speed(hello: Hello, key: str) -> SpeedInfo | None:
    """What the node announces for this kind of training."""
    if not hello.measures:
        return None
    return next((speed for speed in hello.speeds if speed.key == key and speed.engine in engines_of(hello)), None)


def engines_of(hello: Hello) -> tuple[str, ...]:
    """The engines that a plan can name for the node."""
    return hello.engines or (hello.engine.name,)


def own_workers(hello: Hello) -> int:
    """The workers of a node whose speed is not known: what it announces is the most, where it measures."""
    return 1 if hello.measures else hello.workers


def engine_of(settings: TaskSettings, hello: Hello) -> EngineInfo:
    """The engine that the node announces, on the device that the task wants."""
    return hello.engine.model_copy(update={"device": "cpu"}) if settings.device == "cpu" else hello.engine


def manner_of(
    settings: TaskSettings, hello: Hello, speed: SpeedInfo | None, num_clients: int, least_chunk: int
) -> NodeManner:
    """How a node trains its `num_clients` clients of the task: as it measured, if it did.

    It has no more workers than it announces. A chunk is no larger than what gives each worker one, never smaller than
    institutions demand (`least_chunk`), and a round has at most `MAX_CHUNKS`.
    """
    engine = engine_of(settings, hello)
    if not settings.trains:
        return NodeManner(engine, workers=1)
    if speed is None or engine.device != "cpu":
        return NodeManner(engine)
    workers = min(speed.workers, hello.workers)
    here = ceil(settings.cohort_size * num_clients / settings.num_clients)
    chunk = max(min(speed.chunk_clients, ceil(here / workers)), ceil(here / MAX_CHUNKS), least_chunk)
    measured = {"name": speed.engine, "threads": speed.threads}
    # Options that client.yml gives are those of the engine that it names.
    options = hello.engine.options if speed.engine == hello.engine.name else {}
    return NodeManner(engine.model_copy(update={**measured, "options": options}), workers, chunk)


def not_measured(names: Collection[str]) -> list[str]:
    """What the record says of nodes that were asked and did not answer in time."""
    return [f"{name} did not measure its speed in time: it trains as its configuration says" for name in names]
