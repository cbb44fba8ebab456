"""Actions on tasks – submit, stop, resume, delete – for pages and the JSON API."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from fedsim.learning.schedules import make_schedule
from fedsim.log import get_logger
from fedsim.settings import MOST_ROUNDS, TaskSettings
from fedsim.store.records import Event, Task, TaskState, done_rounds
from fedsim.store.tasks import TooManyTasks
from fedsim.web.catalogue import check_settings, read_catalogue
from fedsim.web.errors import Fault, not_found
from fedsim.web.i18n import Text, tr
from fedsim.web.initial_models import find_initial
from fedsim.web.request import WebRequest

_DIGITS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Submitted:
    """A submitted task, notes for the user, and whether it is new or an earlier request had already created it."""

    task: Task
    notes: list[Text]
    is_new: bool


def submit(
    request: WebRequest, submitted_settings: dict[str, Any], key: str = "", *, repeats: int | None = None
) -> Submitted:
    """Check the settings, create the task in the database, and notify the server.

    Args:
        request: the request of the user who submits.
        submitted_settings: the settings, not yet validated.
        key: idempotency key. The same settings of the same user with the same key are the same task: a double click,
            a reload, a lost response. If empty, every call creates a task.
        repeats: the number of the user's task that is run again; its plan is taken where it still fits.

    Raises:
        Fault: 422 with every problem by its field, 429 if the user has too many unfinished tasks, 404 if there is no
            such task to repeat.
    """
    submission = _fingerprint(key, submitted_settings) if key else None
    if submission and (made := request.store.tasks.by_submission(request.authenticated_user.id, submission)):
        return Submitted(made, [], is_new=False)
    if repeats is not None:
        task_of(request, repeats)
    catalogue = read_catalogue(request.site)
    settings, notes = check_settings(submitted_settings, catalogue)
    _check_size(request, settings)
    settings, initial, remarks = find_initial(request, settings, catalogue)
    uid, most = uuid4().hex, request.site.config.max_unfinished_tasks
    user, now = request.authenticated_user.id, request.now
    try:
        task = request.store.tasks.create(
            user, settings, uid, now, submission=submission, most_unfinished=most, repeats=repeats, initial=initial
        )
    except TooManyTasks as error:
        raise _too_many(request) from error
    if task.uid != uid:  # a concurrent request with the same key was faster
        return Submitted(task, notes, is_new=False)
    _note(request, task, "submitted", f"{request.authenticated_user.name} submitted the task")
    request.site.notifier.submitted(task)
    return Submitted(task, notes + remarks, is_new=True)


def _check_size(request: WebRequest, settings: TaskSettings) -> None:
    """Refuse a task that is too large."""
    config = request.site.config
    size = settings.num_rounds * settings.local_epochs * settings.cohort_size
    if settings.trains and config.max_task_size is not None and size > config.max_task_size:
        text = tr(
            "rounds × epochs × clients in each round are %(size)s, at most %(most)s are allowed here",
            size=size,
            most=config.max_task_size,
        )
        problem = tr("The task cannot be submitted: some settings are invalid.")
        raise Fault(422, problem, problems={"num_rounds": text})


def _fingerprint(key: str, submitted_settings: dict[str, Any]) -> str:
    """The settings are part of it: a form that was changed and sent again is another task."""
    return blake2b(json.dumps([key, submitted_settings], sort_keys=True).encode(), digest_size=32).hexdigest()


def task_of(request: WebRequest, number: int) -> Task:
    """Return the user's task with this number; for administrators, any task.

    Raises:
        Fault: 404, both for missing tasks and for those of other users.
    """
    task = request.store.tasks.get(number) if 0 < number < 2**63 else None
    if task is None or (task.user_id != request.authenticated_user.id and not request.is_admin):
        raise not_found(forbidden=task is not None)
    return task


def stop(request: WebRequest, number: int) -> Task:
    """Stop a task that has not finished; idempotent.

    Raises:
        Fault: 409 if it has finished, 404 as `task_of`.
    """
    task = task_of(request, number)
    if not request.store.tasks.request_stop(number, request.now):
        raise Fault(409, tr("Task %(number)s has already finished.", number=number))
    if not task.stop_requested:
        _note(request, task, "stop_requested", f"{request.authenticated_user.name} asked the task to stop")
    request.site.notifier.stop(task, f"stopped by {request.authenticated_user.name}")
    return task_of(request, number)


def resume(request: WebRequest, number: int) -> Task:
    """Let a failed or stopped task continue after its last committed round.

    Raises:
        Fault: 409 with the reason if it cannot be resumed, 404 as `task_of`.
    """
    task = task_of(request, number)
    if not request.store.tasks.request_resume(number):
        raise Fault(409, _why_not_resumable(task))
    _note(request, task, "resume_requested", f"{request.authenticated_user.name} resumed the task")
    resumed = task_of(request, number)
    request.site.notifier.submitted(resumed)
    return resumed


def continue_task(request: WebRequest, number: int, rounds: object) -> Task:
    """Let a completed task go on for further rounds.

    Args:
        request: the request of the user.
        number: of the task.
        rounds: how many, as typed or as sent.

    Raises:
        Fault: 422 with the problem of `rounds`, 409 with the reason if the task cannot be continued, 429 if its owner
            has too many unfinished tasks, 404 as `task_of`.
    """
    task = task_of(request, number)
    wanted = int(rounds) if isinstance(rounds, str) and _DIGITS.fullmatch(rounds.strip()) else rounds
    done = done_rounds(task.settings, task.round)
    most = MOST_ROUNDS - done
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= most:
        problem = tr("Give the further rounds as a whole number from 1 to %(most)s.", most=most)
        raise Fault(422, problem, problems={"rounds": problem})
    _check_size(request, task.settings.model_copy(update={"num_rounds": done + wanted}))
    if request.store.tasks.unfinished_of(task.user_id) >= request.site.config.max_unfinished_tasks:
        raise _too_many(request)
    if not request.store.tasks.request_continue(number, wanted):
        raise Fault(409, _why_not_continuable(task))
    continued = task_of(request, number)
    text = f"{request.authenticated_user.name} continued the task to round {continued.settings.num_rounds}"
    if make_schedule(task.settings).depends_on_num_rounds:
        remark = "its learning rates depend on the number of rounds, so its model differs from that of a task with all"
        _note(request, task, "continued_off_schedule", f"{text}; {remark}")
    else:
        _note(request, task, "continue_requested", text)
    request.site.notifier.submitted(continued)
    return continued


def _too_many(request: WebRequest) -> Fault:
    most = request.site.config.max_unfinished_tasks
    return Fault(429, tr("You have %(most)s unfinished tasks: wait until one has finished, or stop one.", most=most))


def _why_not_continuable(task: Task) -> Text:
    if not task.state.finished:
        return tr("Task %(number)s has not finished: it cannot be continued yet.", number=task.number)
    if task.state is not TaskState.COMPLETED:
        return tr("Task %(number)s is not completed: resume it instead.", number=task.number)
    if task.resume_problem:
        return tr("Task %(number)s cannot be continued: %(why)s.", number=task.number, why=task.resume_problem)
    return tr("Task %(number)s cannot be continued: the server keeps no state of it.", number=task.number)


def _why_not_resumable(task: Task) -> Text:
    if not task.state.finished:
        return tr("Task %(number)s has not finished: there is nothing to resume.", number=task.number)
    if task.state is TaskState.COMPLETED:
        return tr("Task %(number)s is completed: continue it, or run it again with changes.", number=task.number)
    if task.resume_problem:
        return tr("Task %(number)s cannot be resumed: %(why)s.", number=task.number, why=task.resume_problem)
    return tr("Task %(number)s cannot be resumed: the server keeps no state of it.", number=task.number)


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
