"""Tasks: creation, claiming, state transitions, deletion.

A task's row owns its state. Every transition is one conditional UPDATE whose row count is checked: the state of the row
at that moment decides, never a state that was read before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, exc, func, insert, select, update

from fedsim.errors import BadInput
from fedsim.initial import InitialModel
from fedsim.settings import TaskSettings
from fedsim.store.connections import Database
from fedsim.store.queue import pending_in_order
from fedsim.store.records import FINISHED, LEGAL_MOVES, UNFINISHED, Progress, Resumable, Task, TaskState, done_rounds
from fedsim.store.rows import to_record, to_values
from fedsim.store.schema import events, tasks, users

STOPPED_EARLY = "Stopped before it started"
# Cleared when a task has finished; its round is kept.
_NO_PROGRESS = to_values(Progress(round=0, phase=""), without=("round",))


class TooManyTasks(BadInput):
    """A user has as many unfinished tasks as one may have."""


# Without the plan, which has an entry for each node, and the statistics, which have one for each column.
_COLUMNS = [column for column in tasks.c if column.name not in {"plan", "statistics"}]
select_tasks: Select[Any] = select(*_COLUMNS, users.c.name.label("user_name")).join_from(tasks, users)


def _move(
    connection: Connection, which: ColumnElement[bool], state: TaskState, values: Mapping[str, Any], now: float
) -> bool:
    """Move the task `which` to `state` if the transition is legal; returns whether it was moved."""
    changes: dict[str, Any] = {"state": state, **values}
    if state is TaskState.STARTING:
        changes["started_at"] = func.coalesce(tasks.c.started_at, now)  # a resumed task has started before
    if state in FINISHED:
        changes |= {"finished_at": now, **_NO_PROGRESS}
    legal = tasks.c.state.in_(LEGAL_MOVES[state])
    return connection.execute(update(tasks).where(which, legal).values(changes)).rowcount == 1


def _wait_again(connection: Connection, number: int, states: Collection[TaskState], changes: Mapping[str, Any]) -> bool:
    """Let a task that ended in one of `states` wait, with the uid of its kept state; False if it has none."""
    which = (
        (tasks.c.number == number)
        & tasks.c.state.in_(states)
        & tasks.c.resume_uid.is_not(None)
        & tasks.c.delete_requested.is_(False)
    )
    values = {
        "state": TaskState.PENDING,
        "uid": tasks.c.resume_uid,
        "reason": "",
        "finished_at": None,
        "stop_requested": False,
        **changes,
    }
    return connection.execute(update(tasks).where(which).values(values)).rowcount == 1


def _with_rounds(connection: Connection, which: ColumnElement[bool], num_rounds: int) -> TaskSettings | None:
    """The settings of a task with this number of rounds."""
    settings: TaskSettings | None = connection.scalar(select(tasks.c.settings).where(which))
    return None if settings is None else settings.model_copy(update={"num_rounds": num_rounds})


def _submitted(user_id: int, submission: str | None) -> ColumnElement[bool]:
    return (tasks.c.user_id == user_id) & (tasks.c.submission == submission) & tasks.c.submission.is_not(None)


class TaskStore:
    """The table of tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        user_id: int,
        settings: TaskSettings,
        uid: str,
        now: float,
        *,
        submission: str | None = None,
        most_unfinished: int | None = None,
        repeats: int | None = None,
        initial: InitialModel | None = None,
    ) -> Task:
        """Create a pending task, or return the one that this user created with this `submission` (64 characters).

        `repeats` is the number of the task that is run again, `initial` what the first model comes from.

        Raises:
            BadInput: there is no such user, or the uid is taken.
            TooManyTasks: the user would have more than `most_unfinished` tasks that wait or run.
        """
        values = {
            "uid": uid,
            "user_id": user_id,
            "state": TaskState.PENDING,
            "reason": "",
            "settings": settings,
            "created_at": now,
            "stop_requested": False,
            "delete_requested": False,
            "round": 0,
            "metrics": {},
            "nodes": (),
            "submission": submission,
            "repeats": repeats,
            "initial": initial,
            **_NO_PROGRESS,
        }
        with self._database.writing() as connection:
            # One submission of a user at a time: the tasks are counted as they will be.
            connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update())
            try:
                connection.execute(insert(tasks).values(values))
            except exc.IntegrityError as error:
                query = select_tasks.where(_submitted(user_id, submission))
                if (made := connection.execute(query).mappings().one_or_none()) is not None:
                    return to_record(Task, made)
                raise BadInput(f"Task {uid} cannot be created: user {user_id} is unknown, or the uid exists") from error
            if most_unfinished is not None and _unfinished_of(connection, user_id) > most_unfinished:
                raise TooManyTasks(f"User {user_id} has {most_unfinished} unfinished tasks")
            return to_record(Task, connection.execute(select_tasks.where(tasks.c.uid == uid)).mappings().one())

    def get(self, number: int) -> Task | None:
        """The task with this number."""
        return self._one(tasks.c.number == number)

    def by_submission(self, user_id: int, submission: str) -> Task | None:
        """The task that this user created with this submission."""
        return self._one(_submitted(user_id, submission))

    def by_uid(self, uid: str) -> Task | None:
        """The task with this uid."""
        return self._one(tasks.c.uid == uid)

    def given_to(self, node: str, uids: Collection[str]) -> list[str]:
        """Those of `uids` that are tasks in which the node takes part: what a peer invents is none."""
        if not uids:
            return []
        with self._database.reading() as connection:
            found = connection.execute(select(tasks.c.uid, tasks.c.nodes).where(tasks.c.uid.in_(list(uids))))
            return [row.uid for row in found if node in row.nodes]

    def _one(self, which: ColumnElement[bool]) -> Task | None:
        with self._database.reading() as connection:
            row = connection.execute(select_tasks.where(which)).mappings().one_or_none()
        return None if row is None else to_record(Task, row)

    def _some(self, query: Select[Any]) -> list[Task]:
        with self._database.reading() as connection:
            return [to_record(Task, row) for row in connection.execute(query).mappings()]

    def newest(self, user_id: int | None = None, *, limit: int = 50, before: int | None = None) -> list[Task]:
        """The newest tasks, newest first; of one user or of all; with a number below `before`."""
        query = select_tasks.order_by(tasks.c.number.desc()).limit(limit)
        if user_id is not None:
            query = query.where(tasks.c.user_id == user_id)
        if before is not None:
            query = query.where(tasks.c.number < before)
        return self._some(query)

    def unfinished(self) -> list[Task]:
        """Starting and running tasks, oldest first, which a restarted server resumes."""
        return self._some(select_tasks.where(tasks.c.state.in_(UNFINISHED)).order_by(tasks.c.number))

    def with_initial(self) -> list[Task]:
        """The tasks that have not finished and start from another model, oldest first."""
        open_ones = tasks.c.state.not_in(FINISHED) & tasks.c.initial.is_not(None)
        return self._some(select_tasks.where(open_ones).order_by(tasks.c.number))

    def claim_next(self, now: float, most_of_user: int | None = None) -> Task | None:
        """Move the next pending task (see `store.queue`) to starting; None if there is none.

        Two servers never claim the same task.
        """
        waiting = tasks.c.stop_requested.is_(False)
        following = pending_in_order(most_of_user).limit(1)
        with self._database.writing() as connection:
            while (number := connection.scalar(following)) is not None:
                which = tasks.c.number == number
                if _move(connection, which & waiting, TaskState.STARTING, {}, now):
                    return to_record(Task, connection.execute(select_tasks.where(which)).mappings().one())
                # Another server was faster, or the task was stopped: query the committed state again.
        return None

    def move(
        self,
        uid: str,
        state: TaskState,
        *,
        reason: str = "",
        now: float,
        digest: str | None = None,
        resumable: Resumable | None = None,
        num_rounds: int | None = None,
        warning: str = "",
    ) -> bool:
        """Move the task to `state` if LEGAL_MOVES allows it; returns whether it was moved.

        `num_rounds` are those that a task has which could not be continued; None: they stay. `warning`: what users of
        its result have to know.
        """
        values: dict[str, Any] = {"reason": reason, **({"warning": warning} if warning else {})}
        if resumable is not None:
            values |= {f"resume_{name}": getattr(resumable, name) for name in ("uid", "round", "problem")}
        if digest is not None:
            values["digest"] = digest
        with self._database.writing() as connection:
            if num_rounds is not None:
                values["settings"] = _with_rounds(connection, tasks.c.uid == uid, num_rounds)
            return _move(connection, tasks.c.uid == uid, state, values, now)

    def request_stop(self, number: int, now: float) -> bool:
        """Stop a pending task; mark a starting or running one to be stopped. False if it is finished or unknown."""
        which = tasks.c.number == number
        pending = which & (tasks.c.state == TaskState.PENDING)
        with self._database.writing() as connection:
            # In this order: a task that is claimed between the two statements is found by the second.
            if _move(connection, pending, TaskState.STOPPED, {"reason": STOPPED_EARLY, "stop_requested": True}, now):
                return True
            marked = update(tasks).where(which, tasks.c.state.in_(UNFINISHED)).values(stop_requested=True)
            return connection.execute(marked).rowcount == 1

    def request_resume(self, number: int) -> bool:
        """Let a failed or stopped task wait again, with the uid of its kept state; False if it cannot be resumed."""
        with self._database.writing() as connection:
            return _wait_again(connection, number, {TaskState.FAILED, TaskState.STOPPED}, {})

    def request_continue(self, number: int, rounds: int) -> bool:
        """Let a completed task wait again, for `rounds` more; False if it cannot be continued."""
        with self._database.writing() as connection:
            which = tasks.c.number == number
            chosen = select(tasks.c.settings, tasks.c.round).where(which)
            if (row := connection.execute(chosen.with_for_update()).one_or_none()) is None:
                return False
            longer = row.settings.model_copy(update={"num_rounds": done_rounds(row.settings, row.round) + rounds})
            changes = {"settings": longer, "digest": None, "warning": None}
            return _wait_again(connection, number, {TaskState.COMPLETED}, changes)

    def start_over(self, uid: str, new_uid: str) -> bool:
        """Let an unfinished task begin again under a uid that no node knows; False if it has ended."""
        which = update(tasks).where(tasks.c.uid == uid, tasks.c.state.in_(UNFINISHED))
        with self._database.writing() as connection:
            return connection.execute(which.values(uid=new_uid, state=TaskState.STARTING)).rowcount == 1

    def resumable(self, *, finished_before: float) -> list[Task]:
        """The tasks that ended before this time and can be resumed, oldest first."""
        over = tasks.c.state.in_(FINISHED) & (tasks.c.finished_at < finished_before)
        return self._some(select_tasks.where(over, tasks.c.resume_uid.is_not(None)).order_by(tasks.c.number))

    def continuable(self) -> list[Task]:
        """The completed tasks that can be continued, those that finished last first."""
        completed = (tasks.c.state == TaskState.COMPLETED) & tasks.c.resume_uid.is_not(None)
        newest_first = (tasks.c.finished_at.desc(), tasks.c.number.desc())
        return self._some(select_tasks.where(completed).order_by(*newest_first))

    def forget_resume(self, number: int, uid: str, problem: str) -> bool:
        """Record why a task cannot be resumed any more; False if it has been resumed meanwhile."""
        over = (tasks.c.number == number) & tasks.c.state.in_(FINISHED) & (tasks.c.resume_uid == uid)
        values = {"resume_uid": None, "resume_problem": problem}
        with self._database.writing() as connection:
            return connection.execute(update(tasks).where(over).values(values)).rowcount == 1

    def request_delete(self, number: int) -> bool:
        """Mark a finished task to be deleted by the server; False if it is not finished or unknown."""
        which = update(tasks).where(tasks.c.number == number, tasks.c.state.in_(FINISHED))
        with self._database.writing() as connection:
            return connection.execute(which.values(delete_requested=True)).rowcount == 1

    def to_delete(self) -> list[Task]:
        """Finished tasks that are to be deleted, oldest first."""
        return self._some(select_tasks.where(tasks.c.delete_requested).order_by(tasks.c.number))

    def delete(self, number: int) -> None:
        """Delete the task with its rounds, checkpoints and events.

        Raises:
            BadInput: the task is not finished.
        """
        with self._database.writing() as connection:
            finished = delete(tasks).where(tasks.c.number == number, tasks.c.state.in_(FINISHED))
            deleted = connection.execute(finished).rowcount == 1  # with its rounds and checkpoints: foreign keys
            if not deleted and connection.scalar(select(tasks.c.number).where(tasks.c.number == number)) is not None:
                raise BadInput(f"Task {number} has not finished: stop it before deleting it")
            connection.execute(delete(events).where(events.c.task == number))

    def set_progress(self, uid: str, progress: Progress) -> None:
        """Record what a starting or running task is doing; does nothing for any other task."""
        running = update(tasks).where(tasks.c.uid == uid, tasks.c.state.in_(UNFINISHED))
        with self._database.writing() as connection:
            connection.execute(running.values(to_values(progress)))

    def set_nodes(self, uid: str, nodes: tuple[str, ...], left_out: Mapping[str, str] = MappingProxyType({})) -> None:
        """Record the nodes that take part, and why others that were online do not."""
        with self._database.writing() as connection:
            values = {"nodes": nodes, "left_out": dict(left_out)}
            connection.execute(update(tasks).where(tasks.c.uid == uid).values(values))

    def set_plan(self, uid: str, plan: Mapping[str, Any]) -> None:
        """Record how the nodes train, as JSON."""
        with self._database.writing() as connection:
            connection.execute(update(tasks).where(tasks.c.uid == uid).values(plan=dict(plan)))

    def plan(self, number: int) -> dict[str, Any] | None:
        """The recorded plan of a task; None if it has none, or there is no such task."""
        with self._database.reading() as connection:
            found: dict[str, Any] | None = connection.scalar(select(tasks.c.plan).where(tasks.c.number == number))
            return found

    def set_best(self, uid: str, best: Mapping[str, Any]) -> None:
        """Record which round is the best so far."""
        with self._database.writing() as connection:
            connection.execute(update(tasks).where(tasks.c.uid == uid).values(best=dict(best)))

    def set_notes(self, uid: str, notes: tuple[str, ...]) -> None:
        """Record the remarks on the task's data and course."""
        with self._database.writing() as connection:
            connection.execute(update(tasks).where(tasks.c.uid == uid).values(notes=notes))

    def queue_positions(self) -> dict[int, int]:
        """The positions of all pending tasks in the queue, by their numbers; 1 is the next one."""
        with self._database.reading() as connection:
            return {row.number: place for place, row in enumerate(connection.execute(pending_in_order()), 1)}

    def unfinished_of(self, user_id: int) -> int:
        """How many tasks of the user have not finished."""
        with self._database.reading() as connection:
            return _unfinished_of(connection, user_id)


def _unfinished_of(connection: Connection, user_id: int) -> int:
    which = (tasks.c.user_id == user_id) & tasks.c.state.not_in(FINISHED)
    return connection.scalar(select(func.count()).select_from(tasks).where(which)) or 0
