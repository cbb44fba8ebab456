"""Checkpoints, and which of them the retention rule removes."""

from __future__ import annotations

from sqlalchemy import select, update

from fedsim.store.connections import Database, upsert
from fedsim.store.records import FINISHED, Checkpoint, Task
from fedsim.store.rounds import lock_task, select_range
from fedsim.store.rows import to_record, to_values
from fedsim.store.schema import checkpoints, tasks
from fedsim.store.tasks import select_tasks


class CheckpointStore:
    """The table of checkpoints: a projection of the files on the server's disk."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, uid: str, checkpoint: Checkpoint) -> None:
        """Insert or overwrite a checkpoint.

        Raises:
            BadInput: there is no such task.
        """
        with self._database.writing() as connection:
            key = {"task": lock_task(connection, uid), "round": checkpoint.round}
            upsert(connection, checkpoints, key, to_values(checkpoint, without=("round",)))

    def of_task(
        self,
        number: int,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Checkpoint]:
        """The task's checkpoints by round, including those whose file was removed; arguments as in `RoundStore`."""
        with self._database.reading() as connection:
            rows = select_range(connection, checkpoints, number, after, before, limit, newest)
            return [to_record(Checkpoint, row) for row in rows]

    def expired(self, *, finished_before: float | None, keep_tasks: int | None) -> list[tuple[Task, Checkpoint]]:
        """The checkpoints that the retention rule removes, of finished tasks only, oldest task first.

        That of a task's best round stays.

        Args:
            finished_before: remove the checkpoints of tasks that finished before this time; None: no limit of age.
            keep_tasks: of the finished tasks that still have a checkpoint, keep those of this many that finished last;
                tasks without a checkpoint do not count. None: no limit of number.
        """
        existing = select(checkpoints.c.task).where(checkpoints.c.removed_at.is_(None)).distinct()
        finished = select_tasks.where(tasks.c.state.in_(FINISHED), tasks.c.number.in_(existing))
        with self._database.reading() as connection:
            newest_first = finished.order_by(tasks.c.finished_at.desc(), tasks.c.number.desc())
            rows = connection.execute(newest_first).mappings().all()
            kept = len(rows) if keep_tasks is None else keep_tasks
            expired = [
                to_record(Task, row)
                for place, row in enumerate(rows)
                if place >= kept or (finished_before is not None and row["finished_at"] < finished_before)
            ]
            return [
                (task, to_record(Checkpoint, row))
                for task in reversed(expired)
                for row in connection.execute(
                    select(checkpoints)
                    .where(checkpoints.c.task == task.number, checkpoints.c.removed_at.is_(None))
                    .order_by(checkpoints.c.round)
                ).mappings()
                if row["round"] != task.best.get("round")
            ]

    def mark_removed(self, number: int, round_number: int, *, why: str, now: float) -> None:
        """Record that the file was removed, and why; does nothing if that is recorded already."""
        existing = (
            checkpoints.c.task == number,
            checkpoints.c.round == round_number,
            checkpoints.c.removed_at.is_(None),
        )
        with self._database.writing() as connection:
            connection.execute(update(checkpoints).where(*existing).values(removed_at=now, removed_why=why))
