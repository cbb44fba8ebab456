"""Events in the history of tasks, users and the platform."""

from __future__ import annotations

from sqlalchemy import insert, select

from fedsim.store.connections import Database
from fedsim.store.records import Event
from fedsim.store.rows import to_record, to_values
from fedsim.store.schema import events


class EventStore:
    """The table of events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, event: Event) -> None:
        """Add an event; its task may have been deleted already."""
        with self._database.writing() as connection:
            connection.execute(insert(events).values(to_values(event)))

    def newest(self, *, task: int | None = None, limit: int = 200) -> list[Event]:
        """The newest events, newest first; of one task or of all."""
        query = select(events).order_by(events.c.at.desc(), events.c.id.desc()).limit(limit)
        if task is not None:
            query = query.where(events.c.task == task)
        with self._database.reading() as connection:
            return [to_record(Event, row) for row in connection.execute(query).mappings()]
