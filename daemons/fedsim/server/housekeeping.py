"""Clears what is no longer needed: leftovers of finished tasks, deleted tasks, old checkpoints and states."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from fedsim.config import Retention
from fedsim.durations import DAY_SECONDS
from fedsim.log import get_logger
from fedsim.server.deliveries import FinalDeliveries
from fedsim.server.kept_states import KeptStates
from fedsim.spool.clear import clear_other_tasks
from fedsim.spool.durable import remove_file, remove_tree
from fedsim.spool.files import Kind
from fedsim.spool.layout import Spool
from fedsim.store import Store
from fedsim.store.records import Event, Task, TaskState


def sweep_leftovers(spool: Spool, store: Store) -> None:
    """At the start: clear files of tasks that are finished or unknown."""
    keep = {task.uid for task in store.tasks.unfinished()}
    swept = clear_other_tasks(spool, keep, set(Kind) - {Kind.HELLO})
    for uid in sorted(swept):
        get_logger().info("leftovers_swept", uid=uid)


def sweep_kept_states(kept: KeptStates, store: Store) -> None:
    """At the start: remove states that a crash has left, of tasks that were deleted or cannot be resumed."""
    for number in kept.numbers():
        task = store.tasks.get(number)
        if task is None or (task.state.finished and task.resume_uid is None):
            kept.drop(number)


def _gone_on(task: Task) -> str:
    return "continued" if task.state is TaskState.COMPLETED else "resumed"


def remove_old_states(kept: KeptStates, store: Store, days: float, now: float) -> None:
    """Remove the states of tasks that could be resumed for `days`, and record it at their task and in the log."""
    why = f"its state was kept for {days:g} days"
    for task in store.tasks.resumable(finished_before=now - days * DAY_SECONDS):
        if task.resume_uid is not None and store.tasks.forget_resume(task.number, task.resume_uid, why):
            kept.drop(task.number)
            text = f"the task cannot be {_gone_on(task)} any more: {why}"
            store.events.add(Event(time.time(), "retention", text, task=task.number))
            get_logger(task=task.number).info("resumable_state_removed", why=why)


def limit_states(kept: KeptStates, store: Store, most: int) -> None:
    """Keep the states of the completed tasks that finished last, `most` of them, and record which are removed."""
    why = f"the server keeps the states of the newest {most} completed tasks"
    for task in store.tasks.continuable()[most:]:
        if task.resume_uid is not None and store.tasks.forget_resume(task.number, task.resume_uid, why):
            kept.drop(task.number)
            text = f"the task cannot be continued any more: {why}"
            store.events.add(Event(time.time(), "retention", text, task=task.number))
            get_logger(task=task.number).info("resumable_state_removed", why=why)


def delete_tasks(checkpoints: Path, finals: FinalDeliveries, kept: KeptStates, store: Store) -> None:
    """Remove the files, then the rows, of the tasks that their owners deleted."""
    for task in store.tasks.to_delete():
        finals.drop(task.uid)
        kept.drop(task.number)
        remove_tree(checkpoints / f"task-{task.number}")
        store.tasks.delete(task.number)
        get_logger(task=task.number).info("task_deleted")


def apply_retention(checkpoints: Path, store: Store, rule: Retention, now: float) -> None:
    """Remove checkpoints that the rule no longer keeps, and record it at their task and in the log."""
    if rule.keep_days is None and rule.keep_tasks is None:
        return
    before = None if rule.keep_days is None else now - rule.keep_days * DAY_SECONDS
    reasons = []
    if rule.keep_days is not None:
        reasons.append(f"older than {rule.keep_days:g} days")
    if rule.keep_tasks is not None:
        reasons.append(f"not of the newest {rule.keep_tasks} tasks")
    why = " or ".join(reasons)
    for task, checkpoint in store.checkpoints.expired(finished_before=before, keep_tasks=rule.keep_tasks):
        path = checkpoints / checkpoint.path
        remove_file(path)
        remove_file(path.with_suffix(".json"))
        with suppress(OSError):  # the folder is kept while it contains other checkpoints
            path.parent.rmdir()
        store.checkpoints.mark_removed(task.number, checkpoint.round, why=why, now=now)
        text = f"the checkpoint of round {checkpoint.round} was removed: {why}"
        store.events.add(Event(time.time(), "retention", text, task=task.number))
        get_logger(task=task.number).info("checkpoint_removed", round=checkpoint.round, why=why)
