"""What people do with tasks – submit, stop, delete – the same for pages and the JSON API."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from fedsim.log import get_logger
from fedsim.store.records import Event, Task
from fedsim.web.catalogue import check_settings, read_catalogue
from fedsim.web.errors import Fault, not_found
from fedsim.web.i18n import Text, tr
from fedsim.web.request import WebRequest


@dataclass(frozen=True)
class Submitted:
    """The task, notes for the person, and whether it is new or was made by the same submission before."""

    task: Task
    notes: list[Text]
    is_new: bool


def submit(request: WebRequest, given: dict[str, Any], key: str = "") -> Submitted:
    """Check the settings, write the task's row, and give the server a hint.

    Args:
        request: whose person submits.
        given: settings as they were typed or sent.
        key: with the same key, the same settings of the same person are the same task, however often they come: a
            double click, a reload, an answer that was lost on its way. Empty: each time a new task.

    Raises:
        Fault: 422 with every problem beside its field.
    """
    submission = _fingerprint(key, given) if key else None
    if submission and (made := request.store.tasks.by_submission(request.authenticated_user.id, submission)):
        return Submitted(made, [], is_new=False)
    settings, notes = check_settings(given, read_catalogue(request.site))
    uid = uuid4().hex
    task = request.store.tasks.create(request.authenticated_user.id, settings, uid, request.now, submission=submission)
    if task.uid != uid:  # the same submission was faster
        return Submitted(task, notes, is_new=False)
    _note(request, task, "submitted", f"{request.authenticated_user.name} submitted the task")
    request.site.signal.submitted(task)
    return Submitted(task, notes, is_new=True)


def _fingerprint(key: str, given: dict[str, Any]) -> str:
    """Of the settings as well: who goes back and changes something wants another task."""
    return blake2b(json.dumps([key, given], sort_keys=True).encode(), digest_size=32).hexdigest()


def task_of(request: WebRequest, number: int) -> Task:
    """The visitor's task with this number (an administrator's: any).

    Raises:
        Fault: 404 for what is not there and what is somebody else's alike.
    """
    task = request.store.tasks.get(number) if 0 < number < 2**63 else None
    if task is None or (task.user_id != request.authenticated_user.id and not request.is_admin):
        raise not_found()
    return task


def stop(request: WebRequest, number: int) -> Task:
    """Stop a task that has not finished; stopping twice is the same as once.

    Raises:
        Fault: 409 if it has finished, 404 as `task_of`.
    """
    task = task_of(request, number)
    if not request.store.tasks.request_stop(number, request.now):
        raise Fault(409, tr("Task %(number)s has already finished.", number=number))
    if not task.stop_requested:
        _note(request, task, "stop_requested", f"{request.authenticated_user.name} asked the task to stop")
    request.site.signal.stop(task, f"stopped by {request.authenticated_user.name}")
    return task_of(request, number)


def delete(request: WebRequest, number: int) -> Task:
    """Ask the server to delete a finished task with its checkpoints.

    Raises:
        Fault: 409 if it has not finished, 404 as `task_of`.
    """
    task = task_of(request, number)
    if not request.store.tasks.request_delete(number):
        raise Fault(409, tr("Task %(number)s has not finished: stop it first.", number=number))
    if not task.delete_requested:
        _note(request, task, "delete_requested", f"{request.authenticated_user.name} asked for the task to be deleted")
    return task_of(request, number)


def _note(request: WebRequest, task: Task, kind: str, text: str) -> None:
    request.store.events.add(Event(request.now, kind, text, task=task.number, user=request.authenticated_user.name))
    get_logger().info(kind, task=task.number, user=request.authenticated_user.name)
