"""Rounds: a projection of the round folders on the server's disk, which can be written again at any time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, select, update

from fedsim.errors import BadInput
from fedsim.store.connections import Database, upsert
from fedsim.store.records import RoundMetrics, RoundRecord
from fedsim.store.rows import field_names, to_record, to_values
from fedsim.store.schema import rounds, tasks

# Written after the round's model has been tested, later than the rest: a record without them keeps them.
METRICS = ("train_metrics", "metrics", "class_metrics", "node_metrics")


def lock_task(connection: Connection, uid: str) -> int:
    """The task's number. Its row is locked first, so that two writers of its rounds wait instead of deadlocking."""
    number: int | None = connection.scalar(select(tasks.c.number).where(tasks.c.uid == uid).with_for_update())
    if number is None:
        raise BadInput(f"Task {uid} is not in the database: it was deleted, or belongs to another database")
    return number


def select_range(
    connection: Connection,
    table: Table,
    number: int,
    after: int | None,
    before: int | None,
    limit: int | None,
    newest: bool,
) -> Sequence[Any]:
    """Rows of the task by round; see `RoundStore.of_task`."""
    query = select(table).where(table.c.task == number).limit(limit)
    if after is not None:
        query = query.where(table.c.round > after)
    if before is not None:
        query = query.where(table.c.round < before)
    found = connection.execute(query.order_by(table.c.round.desc() if newest else table.c.round)).mappings().all()
    return found[::-1] if newest else found


class RoundStore:
    """The table of rounds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self, uid: str, record: RoundRecord, participation: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        """Insert or overwrite a round; metrics that are already recorded are kept where `record` has none.

        Also updates the task: its round, which never decreases by this, its metrics, which are those of its newest
        tested round, and its `participation` up to this round. NaN and infinities are stored as None.

        Raises:
            BadInput: there is no such task.
        """
        with self._database.writing() as connection:
            number = lock_task(connection, uid)
            key = {"task": number, "round": record.round}
            upsert(connection, rounds, key, to_values(record, without=("round",)), keep=METRICS)
            newest = connection.scalar(
                select(rounds.c.metrics)
                .where(rounds.c.task == number, rounds.c.metrics.is_not(None))
                .order_by(rounds.c.round.desc())
                .limit(1)
            )
            of_task = update(tasks).where(tasks.c.number == number)
            connection.execute(of_task.where(tasks.c.round < record.round).values(round=record.round))
            if participation is not None:
                connection.execute(of_task.values(participation=dict(participation)))
            if newest is not None:
                connection.execute(of_task.values(metrics=newest))

    def of_task(
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
            number: the task's number.
            after: only rounds after this one.
            before: only rounds before this one.
            limit: at most this many rounds.
            newest: let `limit` select the last rounds, not the first.
        """
        with self._database.reading() as connection:
            rows = select_range(connection, rounds, number, after, before, limit, newest)
            return [to_record(RoundRecord, row) for row in rows]

    def count(self, number: int) -> int:
        """How many rounds of the task are recorded."""
        with self._database.reading() as connection:
            return connection.scalar(select(func.count()).where(rounds.c.task == number)) or 0

    def missing(self, number: int) -> dict[int, tuple[int, ...]]:
        """The clients whose updates did not count, by round; rounds that lack none are left out."""
        query = select(rounds.c.round, rounds.c.missing).where(rounds.c.task == number, rounds.c.missing != ())
        with self._database.reading() as connection:
            return {row.round: row.missing for row in connection.execute(query.order_by(rounds.c.round))}

    def metrics(self, number: int, among: Collection[int]) -> list[RoundMetrics]:
        """The metrics of those of the rounds `among` that are recorded, by round."""
        columns = [rounds.c[name] for name in field_names(RoundMetrics)]
        query = select(*columns).where(rounds.c.task == number, rounds.c.round.in_(among)).order_by(rounds.c.round)
        with self._database.reading() as connection:
            return [to_record(RoundMetrics, row) for row in connection.execute(query).mappings()]
