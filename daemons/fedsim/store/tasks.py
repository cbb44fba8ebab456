"""Tasks: submitted, claimed, moved along their states, watched, deleted.

Every move is one conditional UPDATE: what the row holds at that moment decides, never what somebody read before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, exc, func, insert, select, update

from fedsim.errors import BadInput
from fedsim.settings import TaskSettings
from fedsim.store.engine import Database
from fedsim.store.interface import FINISHED, LEGAL_MOVES, Progress, Task, TaskState
from fedsim.store.schema import events, tasks, users

UNFINISHED = (TaskState.STARTING, TaskState.RUNNING)
STOPPED_EARLY = "Stopped before it started"
# What a running task shows, and a finished one no longer does.
_NO_PROGRESS: dict[str, Any] = {"phase": "", "waiting_for": (), "waiting_until": None, "eta_seconds": None}

select_tasks: Select[Any] = select(tasks, users.c.name.label("user_name")).join_from(tasks, users)


def read_settings(stored: Mapping[str, Any]) -> TaskSettings:
    """Settings as a row holds them, not checked again.

    They were checked when they were written, and a row must stay readable: with fields that came later (their
    defaults), fields that are gone (left out), and a model that is no longer installed.
    """
    return TaskSettings.model_construct(**{name: stored[name] for name in TaskSettings.model_fields if name in stored})


def read_task(row: Any) -> Task:
    """A row of `select_tasks` as a record."""
    return Task(
        number=row.number,
        uid=row.uid,
        user_id=row.user_id,
        user_name=row.user_name,
        state=TaskState(row.state),
        reason=row.reason,
        settings=read_settings(row.settings),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        stop_requested=row.stop_requested,
        delete_requested=row.delete_requested,
        round=row.round,
        loss=row.loss,
        accuracy=row.accuracy,
        phase=row.phase,
        waiting_for=tuple(row.waiting_for),
        waiting_until=row.waiting_until,
        eta_seconds=row.eta_seconds,
        nodes=tuple(row.nodes),
        digest=row.digest,
    )


def _move(
    connection: Connection, which: ColumnElement[bool], state: TaskState, values: Mapping[str, Any], now: float
) -> bool:
    """Move the one task `which` to `state`, if it stands where that is legal; whether it did."""
    changes: dict[str, Any] = {"state": state, **values}
    if state is TaskState.STARTING:
        changes["started_at"] = now
    if state in FINISHED:
        changes |= {"finished_at": now, **_NO_PROGRESS}
    legal = tasks.c.state.in_(LEGAL_MOVES[state])
    return connection.execute(update(tasks).where(which, legal).values(changes)).rowcount == 1


def _submitted(user_id: int, submission: str | None) -> ColumnElement[bool]:
    return (tasks.c.user_id == user_id) & (tasks.c.submission == submission) & tasks.c.submission.is_not(None)


class Tasks(Database):
    """The questions about tasks."""

    def create_task(
        self, user_id: int, settings: TaskSettings, uid: str, now: float, *, submission: str | None = None
    ) -> Task:
        """A new pending task, or the one that this user made with this `submission` (64 characters).

        Raises:
            BadInput: there is no such user, or the uid is taken.
        """
        row = {
            "uid": uid,
            "user_id": user_id,
            "state": TaskState.PENDING,
            "reason": "",
            "settings": settings.model_dump(mode="json"),
            "created_at": now,
            "stop_requested": False,
            "delete_requested": False,
            "round": 0,
            "nodes": (),
            "submission": submission,
            **_NO_PROGRESS,
        }
        with self.writing() as connection:
            try:
                connection.execute(insert(tasks).values(row))
            except exc.IntegrityError as error:
                made = connection.execute(select_tasks.where(_submitted(user_id, submission))).one_or_none()
                if made is not None:
                    return read_task(made)
                raise BadInput(f"Task {uid} cannot be made: user {user_id} is unknown, or the uid is taken") from error
            return read_task(connection.execute(select_tasks.where(tasks.c.uid == uid)).one())

    def task(self, number: int) -> Task | None:
        """The task that people know by this number."""
        return self._one_task(tasks.c.number == number)

    def task_by_submission(self, user_id: int, submission: str) -> Task | None:
        """The task that this user made with this submission."""
        return self._one_task(_submitted(user_id, submission))

    def task_by_uid(self, uid: str) -> Task | None:
        """The task that headers and paths know by this uid."""
        return self._one_task(tasks.c.uid == uid)

    def _one_task(self, which: ColumnElement[bool]) -> Task | None:
        with self.reading() as connection:
            row = connection.execute(select_tasks.where(which)).one_or_none()
        return None if row is None else read_task(row)

    def _some_tasks(self, query: Select[Any]) -> list[Task]:
        with self.reading() as connection:
            return [read_task(row) for row in connection.execute(query)]

    def tasks(self, user_id: int | None = None, *, limit: int = 50, before: int | None = None) -> list[Task]:
        """Newest first; of one user or all; those with a number below `before`."""
        query = select_tasks.order_by(tasks.c.number.desc()).limit(limit)
        if user_id is not None:
            query = query.where(tasks.c.user_id == user_id)
        if before is not None:
            query = query.where(tasks.c.number < before)
        return self._some_tasks(query)

    def unfinished_tasks(self) -> list[Task]:
        """Starting and running ones, oldest first."""
        return self._some_tasks(select_tasks.where(tasks.c.state.in_(UNFINISHED)).order_by(tasks.c.number))

    def claim_next_task(self, now: float) -> Task | None:
        """Move the oldest pending task that nobody wants stopped to starting; None if there is none."""
        waiting = tasks.c.stop_requested.is_(False)
        oldest = select(func.min(tasks.c.number)).where(tasks.c.state == TaskState.PENDING, waiting)
        with self.writing() as connection:
            while (number := connection.scalar(oldest)) is not None:
                which = tasks.c.number == number
                if _move(connection, which & waiting, TaskState.STARTING, {}, now):
                    return read_task(connection.execute(select_tasks.where(which)).one())
                # Another server was faster (or the task was stopped): look again, at what is committed now.
        return None

    def move_task(self, uid: str, state: TaskState, *, reason: str = "", now: float, digest: str | None = None) -> bool:
        """Move the task, if it stands where LEGAL_MOVES allows that; whether it happened."""
        values: dict[str, Any] = {"reason": reason}
        if digest is not None:
            values["digest"] = digest
        with self.writing() as connection:
            return _move(connection, tasks.c.uid == uid, state, values, now)

    def request_stop(self, number: int, now: float) -> bool:
        """Stop a pending task, note the wish at a starting or running one; False if it is finished or unknown."""
        which = tasks.c.number == number
        pending = which & (tasks.c.state == TaskState.PENDING)
        with self.writing() as connection:
            # In this order: a task that is claimed between the two statements is found by the second.
            if _move(connection, pending, TaskState.STOPPED, {"reason": STOPPED_EARLY, "stop_requested": True}, now):
                return True
            noted = update(tasks).where(which, tasks.c.state.in_(UNFINISHED)).values(stop_requested=True)
            return connection.execute(noted).rowcount == 1

    def request_delete(self, number: int) -> bool:
        """Note that a finished task shall go; False if it is not finished or unknown."""
        which = update(tasks).where(tasks.c.number == number, tasks.c.state.in_(FINISHED))
        with self.writing() as connection:
            return connection.execute(which.values(delete_requested=True)).rowcount == 1

    def tasks_to_delete(self) -> list[Task]:
        """Finished tasks that somebody wants gone, oldest first."""
        return self._some_tasks(select_tasks.where(tasks.c.delete_requested).order_by(tasks.c.number))

    def delete_task(self, number: int) -> None:
        """The task with its rounds, checkpoints and events; `BadInput` if it is not finished."""
        with self.writing() as connection:
            finished = delete(tasks).where(tasks.c.number == number, tasks.c.state.in_(FINISHED))
            gone = connection.execute(finished).rowcount == 1  # rounds and checkpoints go by their foreign keys
            if not gone and connection.scalar(select(tasks.c.number).where(tasks.c.number == number)) is not None:
                raise BadInput(f"Task {number} is not finished: stop it before it is deleted")
            connection.execute(delete(events).where(events.c.task == number))

    def set_progress(self, uid: str, progress: Progress) -> None:
        """What a starting or running task does now; at any other it changes nothing."""
        values = {
            "round": progress.round,
            "phase": progress.phase,
            "waiting_for": progress.waiting_for,
            "waiting_until": progress.waiting_until,
            "eta_seconds": progress.eta_seconds,
        }
        with self.writing() as connection:
            connection.execute(update(tasks).where(tasks.c.uid == uid, tasks.c.state.in_(UNFINISHED)).values(values))

    def set_nodes(self, uid: str, nodes: tuple[str, ...]) -> None:
        """Which nodes take part."""
        with self.writing() as connection:
            connection.execute(update(tasks).where(tasks.c.uid == uid).values(nodes=nodes))

    def queue_position(self, number: int) -> int | None:
        """How many pending tasks there are up to this one, itself included; None if it is not pending."""
        pending = tasks.c.state == TaskState.PENDING
        with self.reading() as connection:
            if connection.scalar(select(tasks.c.number).where(tasks.c.number == number, pending)) is None:
                return None
            return connection.scalar(select(func.count()).where(pending, tasks.c.number <= number))
