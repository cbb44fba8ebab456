"""Plans a claimed task with what the server knows: the nodes that are online, its data sets and its configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fedsim import __version__
from fedsim.config import Limits
from fedsim.errors import BadInput
from fedsim.messages import PluginInfo, read_message
from fedsim.plugins import provenance
from fedsim.server.context import ServerContext
from fedsim.spool.files import FileId
from fedsim.state_machines.candidates import Impossible, Waiting
from fedsim.state_machines.plan import Plan, make_plan
from fedsim.state_machines.repeated import Repeats
from fedsim.state_machines.shares import RecordedPlan
from fedsim.store.records import Task
from fedsim.wire.protocol.frames import room_for_meta
from fedsim.worker.inspector import Inspected


def plan_task(
    context: ServerContext, task: Task, own: Inspected, left_out: Mapping[str, str], measured_late: Collection[str] = ()
) -> Plan | Waiting | Impossible:
    """Plan a task without the nodes in `left_out` (node -> why); `own` are the server's data sets.

    The nodes in `measured_late` were asked to measure their speed and are not waited for any more.
    """
    wanted = task.settings.dataset
    try:
        chosen = {
            setting: PluginInfo.of(name, provenance(group, name))
            for setting, (group, name) in task.settings.chosen_plugins.items()
            if task.settings.trains
        }
    except BadInput as error:
        return Impossible(str(error))
    nodes = context.nodes
    plan = make_plan(
        task=task.uid,
        number=task.number,
        user=task.user_name,
        settings=task.settings,
        hellos={name: hello for name, hello in nodes.online().items() if name not in left_out},
        not_heard=[name for name in nodes.not_heard() if name not in left_out],
        server_dataset=next((dataset for dataset in own.datasets if dataset.name == wanted), None),
        server_problem=own.unusable.get(wanted),
        limits=context.config.limits,
        testset_from=context.config.testset_from.get(wanted, ""),
        known_digest={**context.known_data.read(), **context.config.dataset_digests}.get(wanted),
        # The settings of the nodes' receivers are not known here; each should accept what the default allows.
        broadcast_bytes=room_for_meta(Limits().max_header_bytes, FileId.model_of(task.uid, task.settings.num_rounds)),
        plugins=chosen,
        version=__version__,
        measured_late=measured_late,
        repeats=_repeats(context, task),
    )
    if isinstance(plan, Plan):
        everyone = tuple(sorted({**dict(plan.left_out), **left_out}.items()))
        most = context.config.prepare_timeout_seconds
        fixed = {"left_out": everyone, "prepare_timeout_seconds": most, "initial": task.initial}
        return plan.model_copy(update=fixed)
    return plan


def _repeats(context: ServerContext, task: Task) -> Repeats | None:
    """The task that this one runs again, with its plan as far as this version understands it."""
    if task.repeats is None:
        return None
    content = context.store.tasks.plan(task.repeats)
    try:
        found = None if content is None else read_message(RecordedPlan, content, f"the plan of task {task.repeats}")
    except BadInput:
        found = None
    return Repeats(task.repeats, found)
