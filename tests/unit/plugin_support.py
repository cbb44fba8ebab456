"""Plug-ins as a server and nodes with the same packages announce and plan them."""

from __future__ import annotations

from fedsim import plugins
from fedsim.messages import PluginInfo
from fedsim.settings import TASK_GROUPS, TaskSettings


def plugin(name: str, **changes: str) -> PluginInfo:
    return PluginInfo(name=name, **{"distribution": "fedsim", "version": "1", "digest": "ab" * 16, **changes})


def all_plugins() -> dict[str, tuple[PluginInfo, ...]]:
    """What a node with every built-in plug-in offers."""
    return {plugins.short_name(group): tuple(map(plugin, plugins.names(group))) for group in TASK_GROUPS}


def chosen_plugins(settings: TaskSettings) -> dict[str, PluginInfo]:
    """What the server has of the plug-ins that a task uses."""
    return {setting: plugin(name) for setting, (_, name) in settings.chosen_plugins.items()}
