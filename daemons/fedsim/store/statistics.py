"""The statistics that tasks of the kind `statistics` have gathered, in the rows of these tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update

from fedsim.store.connections import Database
from fedsim.store.schema import tasks


class StatisticsStore:
    """What nodes reported of their data, as JSON; see `learning.pooled_statistics`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, uid: str, statistics: Mapping[str, Any]) -> None:
        """Record what the nodes of the task together reported; again replaces it."""
        with self._database.writing() as connection:
            connection.execute(update(tasks).where(tasks.c.uid == uid).values(statistics=dict(statistics)))

    def of_task(self, number: int) -> dict[str, Any] | None:
        """The statistics of a task; None of one that gathers none, or has none yet."""
        with self._database.reading() as connection:
            found: dict[str, Any] | None = connection.scalar(select(tasks.c.statistics).where(tasks.c.number == number))
            return found
