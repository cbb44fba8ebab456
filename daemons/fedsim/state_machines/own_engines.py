"""Which engines a node offers, and what of them only its owner decides."""

from __future__ import annotations

from typing import Any

from fedsim import plugins
from fedsim.config import AUTO, ClientConfig
from fedsim.errors import BadInput
from fedsim.learning.engines import Engine
from fedsim.messages import MAX_PLUGINS, EngineInfo
from fedsim.plugins import Plugin


def offered_engines(config: ClientConfig) -> tuple[str, ...]:
    """The engines that a plan can name for this node, the simplest first."""
    if config.engine != AUTO:
        return (config.engine,)
    measured = (name for name in plugins.names(plugins.ENGINES) if (found := _find(name)) and found.measured)
    return tuple(sorted(measured, key=lambda name: (name != "sequential", name))[:MAX_PLUGINS])


def announced_options(config: ClientConfig) -> dict[str, Any]:
    """The options of the node's engine without those that stay on the node."""
    private = _private(offered_engines(config)[0])
    return {name: value for name, value in config.engine_options.items() if name not in private}


def with_private_options(engine: EngineInfo, config: ClientConfig) -> EngineInfo:
    """What a plan names for this node, with the options that only client.yml sets."""
    if engine.name != config.engine:
        return engine
    private = _private(engine.name)
    own = {name: value for name, value in config.engine_options.items() if name in private}
    return engine.model_copy(update={"options": {**engine.options, **own}})


def engine_problem(engine: EngineInfo, config: ClientConfig) -> str | None:
    """Why this node does not train with an engine that the server names, or None."""
    found = _find(engine.name)
    if found is None:
        return f"the engine {engine.name} is not installed here"
    if not found.measured and engine.name != config.engine:
        return f"the engine {engine.name} is used only where the node's owner has chosen it (engine in client.yml)"
    if given := sorted(set(engine.options) & found.private_options):
        return f"only the node's owner sets {', '.join(given)} of the engine {engine.name} (engine_options)"
    return None


def _private(name: str) -> frozenset[str]:
    found = _find(name)
    return frozenset() if found is None else found.private_options


def _find(name: str) -> type[Engine] | None:
    try:
        plugin: type[Plugin] = plugins.load(plugins.ENGINES, name)
    except BadInput:  # not installed, or of a package that is broken, which `problems` names
        return None
    return plugin if issubclass(plugin, Engine) else None
