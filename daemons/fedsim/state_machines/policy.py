"""Decisions that need no memory: what the rules of an institution, a configuration or a report mean for a task."""

from __future__ import annotations

from collections.abc import Collection

from fedsim.config import ClientConfig
from fedsim.messages import Assignment, TaskReport
from fedsim.plugins import short_name
from fedsim.state_machines.plan import Plan


def refusal(assignment: Assignment, config: ClientConfig) -> str | None:
    """Why the institution's rules in client.yml forbid this task, or None."""
    rules = config.institution
    settings = assignment.settings
    for group, name in settings.chosen_plugins.values():
        allowed = rules.allows(group)
        if allowed is not None and name not in allowed:
            return f"this institution allows the {short_name(group)} {', '.join(allowed) or 'none'}, not {name}"
    if rules.min_privacy_level != "none":
        return f"this institution demands the privacy level {rules.min_privacy_level}, which the task does not offer"
    if assignment.send_testset:
        shared = [dataset.name for dataset in config.datasets if dataset.share]
        if settings.dataset not in shared:
            return f"the test set of {settings.dataset} does not leave this house (`share: false`)"
    return None


def removed_nodes(plan: Plan, configured: Collection[str]) -> str | None:
    """Why a task cannot continue after a change of server.yml: nodes that take part are no longer in it; or None."""
    gone = [name for name in plan.nodes if name not in configured]
    return f"{', '.join(gone)} took part, but server.yml does not name it any more" if gone else None


def missed_the_end(report: TaskReport, *, active: bool, final_pending: bool) -> bool:
    """Whether a node still works on a task that is over, and must be sent a stop.

    Args:
        report: what the node reports of the task.
        active: whether the task is waiting or running on the server.
        final_pending: whether the node has yet to receive the task's final model, which ends the task there.
    """
    return not active and not final_pending and report.state != "closing"
