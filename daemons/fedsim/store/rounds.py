"""Rounds and checkpoints: a projection of what lies on the server's disk, written again and again without harm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, or_, select, update

from fedsim.errors import BadInput
from fedsim.store.engine import Database, upsert
from fedsim.store.interface import FINISHED, Checkpoint, Measured, RoundRecord, Task
from fedsim.store.schema import checkpoints, rounds, tasks
from fedsim.store.tasks import read_task, select_tasks

# Written when the round's model has been tested, later than the rest: a record without them does not unwrite them.
METRICS = ("train_loss", "loss", "accuracy", "recall", "auc")


def _round(row: Any) -> RoundRecord:
    return RoundRecord(
        round=row.round,
        digest=row.digest,
        num_examples=row.num_examples,
        train_loss=row.train_loss,
        seconds=row.seconds,
        bytes_sent=row.bytes_sent,
        bytes_received=row.bytes_received,
        cohort_size=row.cohort_size,
        missing=tuple(row.missing),
        finished_at=row.finished_at,
        loss=row.loss,
        accuracy=row.accuracy,
        recall=None if row.recall is None else tuple(row.recall),
        auc=row.auc,
    )


def _checkpoint(row: Any) -> Checkpoint:
    return Checkpoint(
        round=row.round,
        path=row.path,
        digest=row.digest,
        size=row.size,
        created_at=row.created_at,
        removed_at=row.removed_at,
        removed_why=row.removed_why,
    )


def _number_of(connection: Connection, uid: str) -> int:
    """The task's number; its row is locked first, so that two writers of its rounds wait instead of deadlocking."""
    number: int | None = connection.scalar(select(tasks.c.number).where(tasks.c.uid == uid).with_for_update())
    if number is None:
        raise BadInput(f"There is no task {uid} in the database: it was deleted, or belongs to another one")
    return number


def _stretch(
    connection: Connection,
    table: Table,
    number: int,
    after: int | None,
    before: int | None,
    limit: int | None,
    newest: bool,
) -> Sequence[Any]:
    """Rows of the task in order of their rounds, see `Rounds.rounds`."""
    query = select(table).where(table.c.task == number).limit(limit)
    if after is not None:
        query = query.where(table.c.round > after)
    if before is not None:
        query = query.where(table.c.round < before)
    found = connection.execute(query.order_by(table.c.round.desc() if newest else table.c.round)).all()
    return found[::-1] if newest else found


class Rounds(Database):
    """The questions about rounds and checkpoints."""

    def record_round(self, uid: str, record: RoundRecord) -> None:
        """Insert or overwrite; metrics that are there stay where `record` has none; `BadInput`: no such task.

        The task's round never goes back by this, and its loss and accuracy are those of its newest evaluated round.
        """
        values = {
            "digest": record.digest,
            "num_examples": record.num_examples,
            "train_loss": record.train_loss,
            "seconds": record.seconds,
            "bytes_sent": record.bytes_sent,
            "bytes_received": record.bytes_received,
            "cohort_size": record.cohort_size,
            "missing": record.missing,
            "finished_at": record.finished_at,
            "loss": record.loss,
            "accuracy": record.accuracy,
            "recall": record.recall,
            "auc": record.auc,
        }
        evaluated = or_(rounds.c.loss.is_not(None), rounds.c.accuracy.is_not(None))
        with self.writing() as connection:
            number = _number_of(connection, uid)
            upsert(connection, rounds, {"task": number, "round": record.round}, values, keep=METRICS)
            newest = connection.execute(
                select(rounds.c.loss, rounds.c.accuracy)
                .where(rounds.c.task == number, evaluated)
                .order_by(rounds.c.round.desc())
                .limit(1)
            ).one_or_none()
            of_task = update(tasks).where(tasks.c.number == number)
            connection.execute(of_task.where(tasks.c.round < record.round).values(round=record.round))
            if newest is not None:
                connection.execute(of_task.values(loss=newest.loss, accuracy=newest.accuracy))

    def rounds(
        self,
        number: int,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[RoundRecord]:
        """The task's rounds in order, 0 (the evaluation of the initial model) first.

        Args:
            number: the task's.
            after: only rounds behind this one.
            before: only rounds in front of this one.
            limit: at most so many of them.
            newest: let `limit` take the last ones, not the first.
        """
        with self.reading() as connection:
            return [_round(row) for row in _stretch(connection, rounds, number, after, before, limit, newest)]

    def count_rounds(self, number: int) -> int:
        """How many rounds are recorded."""
        with self.reading() as connection:
            return connection.scalar(select(func.count()).where(rounds.c.task == number)) or 0

    def measured(self, number: int, among: Collection[int]) -> list[Measured]:
        """What was measured in those of the rounds `among` that are recorded, in their order."""
        columns = (rounds.c.round, rounds.c.train_loss, rounds.c.loss, rounds.c.accuracy)
        query = select(*columns).where(rounds.c.task == number, rounds.c.round.in_(among)).order_by(rounds.c.round)
        with self.reading() as connection:
            return [Measured(*row) for row in connection.execute(query)]

    def record_checkpoint(self, uid: str, checkpoint: Checkpoint) -> None:
        """Insert or overwrite; `BadInput`: no such task."""
        values = {
            "path": checkpoint.path,
            "digest": checkpoint.digest,
            "size": checkpoint.size,
            "created_at": checkpoint.created_at,
            "removed_at": checkpoint.removed_at,
            "removed_why": checkpoint.removed_why,
        }
        with self.writing() as connection:
            key = {"task": _number_of(connection, uid), "round": checkpoint.round}
            upsert(connection, checkpoints, key, values)

    def checkpoints(
        self,
        number: int,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Checkpoint]:
        """The task's checkpoints in order of their rounds, also those whose file is gone; which, as in `rounds`."""
        with self.reading() as connection:
            found = _stretch(connection, checkpoints, number, after, before, limit, newest)
            return [_checkpoint(row) for row in found]

    def expired_checkpoints(
        self, *, finished_before: float | None, keep_tasks: int | None
    ) -> list[tuple[Task, Checkpoint]]:
        """What the retention rule lets go, of finished tasks only, oldest task first.

        Args:
            finished_before: checkpoints of tasks that finished before this time (seconds) go; None: none for its age.
            keep_tasks: of the finished tasks that still have a checkpoint, those beyond this many that finished last
                go; a failed task without one takes nobody's place. None: none for their number.
        """
        there = select(checkpoints.c.task).where(checkpoints.c.removed_at.is_(None)).distinct()
        finished = select_tasks.where(tasks.c.state.in_(FINISHED), tasks.c.number.in_(there))
        with self.reading() as connection:
            rows = connection.execute(finished.order_by(tasks.c.finished_at.desc(), tasks.c.number.desc())).all()
            kept = len(rows) if keep_tasks is None else keep_tasks
            expired = [
                read_task(row)
                for place, row in enumerate(rows)
                if place >= kept or (finished_before is not None and row.finished_at < finished_before)
            ]
            return [
                (task, _checkpoint(row))
                for task in reversed(expired)
                for row in connection.execute(
                    select(checkpoints)
                    .where(checkpoints.c.task == task.number, checkpoints.c.removed_at.is_(None))
                    .order_by(checkpoints.c.round)
                )
            ]

    def mark_checkpoint_removed(self, number: int, round_number: int, *, why: str, now: float) -> None:
        """The file is gone, and why; what was said first stays."""
        there = (
            checkpoints.c.task == number,
            checkpoints.c.round == round_number,
            checkpoints.c.removed_at.is_(None),
        )
        with self.writing() as connection:
            connection.execute(update(checkpoints).where(*there).values(removed_at=now, removed_why=why))
