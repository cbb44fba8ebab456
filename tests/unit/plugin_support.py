"""What nodes with the same packages as the server announce – their plug-ins and data – and plans of tasks on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedsim import plugins
from fedsim.config import TaskLimits
from fedsim.data_schema import DataSchema
from fedsim.messages import DataSetInfo, EngineInfo, Hello, PluginInfo
from fedsim.plugin_settings import TASK_GROUPS
from fedsim.settings import TaskSettings
from fedsim.state_machines.candidates import Impossible, Waiting
from fedsim.state_machines.plan import Plan, make_plan

UID = "0" * 32
PIXELS = DataSchema(kind="images", layout="H W", channels=1, value_range=(0.0, 1.0))
INFO = DataSetInfo(
    name="mnist",
    digest="a" * 64,
    num_train=600,
    num_test=100,
    num_held_out=100,
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


def attempt(
    settings: TaskSettings, hellos: Iterable[Hello] | Mapping[str, Hello], **changes: object
) -> Plan | Waiting | Impossible:
    """The plan of a task on the nodes that announce themselves so; `changes` are other arguments of `make_plan`."""
    fields: dict[str, object] = {
        "task": UID,
        "not_heard": [],
        "server_dataset": None,
        "limits": TaskLimits(),
        "broadcast_bytes": 10**6,
        "plugins": chosen_plugins(settings),
        **changes,
    }
    online = hellos.values() if isinstance(hellos, Mapping) else hellos
    by_name = {hello.node: hello for hello in online}
    return make_plan(number=1, settings=settings, hellos=by_name, version="1", **fields)  # type: ignore[arg-type]


def planned(*hellos: Hello, settings: TaskSettings, **changes: object) -> Plan:
    """The same, where a plan must be possible."""
    plan = attempt(settings, hellos, **changes)
    assert isinstance(plan, Plan), plan
    return plan
