"""What nodes with the same packages as the server announce: their plug-ins and data."""

from __future__ import annotations

from fedsim import plugins
from fedsim.data_schema import DataSchema
from fedsim.messages import DataSetInfo, EngineInfo, Hello, PluginInfo
from fedsim.settings import TASK_GROUPS, TaskSettings

PIXELS = DataSchema(kind="images", layout="H W", channels=1, value_range=(0.0, 1.0))
INFO = DataSetInfo(
    name="mnist",
    digest="a" * 64,
    num_train=600,
    num_test=100,
    feature_shape=(28, 28),
    num_classes=10,
    share_test=True,
    data_schema=PIXELS,
)


def plugin(name: str, **changes: str) -> PluginInfo:
    return PluginInfo(name=name, **{"distribution": "fedsim", "version": "1", "digest": "ab" * 16, **changes})


def all_plugins() -> dict[str, tuple[PluginInfo, ...]]:
    """What a node with every built-in plug-in offers."""
    return {plugins.short_name(group): tuple(map(plugin, plugins.names(group))) for group in TASK_GROUPS}


def chosen_plugins(settings: TaskSettings) -> dict[str, PluginInfo]:
    """What the server has of the plug-ins that a task uses."""
    return {setting: plugin(name) for setting, (_, name) in settings.chosen_plugins.items()}


def hello(node: str, **changes: object) -> Hello:
    fields: dict[str, object] = {
        "node": node,
        "version": "1",
        "sent_at": 0.0,
        "clients": 20,
        "engine": EngineInfo(),
        "datasets": (INFO,),
        "plugins": all_plugins(),
        **changes,
    }
    return Hello.model_validate(fields)
