"""What the server heard from the nodes, and what is worth telling people."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, insert, select

from fedsim.store.engine import Database, upsert
from fedsim.store.interface import Event, Node
from fedsim.store.schema import events, nodes


class Events(Database):
    """The questions about nodes and events."""

    def record_node(self, node: Node) -> None:
        """Insert or overwrite what the node last announced."""
        with self.writing() as connection:
            upsert(connection, nodes, {"name": node.name}, {"seen_at": node.seen_at, "hello": node.hello})

    def keep_nodes(self, names: Collection[str]) -> None:
        """Forget every node that is none of these."""
        with self.writing() as connection:
            connection.execute(delete(nodes).where(nodes.c.name.not_in(names)))

    def nodes(self) -> list[Node]:
        """Every node of the lab's that ever announced itself, by name."""
        with self.reading() as connection:
            rows = connection.execute(select(nodes).order_by(nodes.c.name))
            return [Node(name=row.name, seen_at=row.seen_at, hello=row.hello) for row in rows]

    def add_event(self, event: Event) -> None:
        """Keep the event; its task may be gone already."""
        row = {
            "at": event.at,
            "kind": event.kind,
            "text": event.text,
            "task": event.task,
            "user": event.user,
            "fields": event.fields,
        }
        with self.writing() as connection:
            connection.execute(insert(events).values(row))

    def events(self, *, task: int | None = None, limit: int = 200) -> list[Event]:
        """Newest first; of one task or all."""
        query = select(events).order_by(events.c.at.desc(), events.c.id.desc()).limit(limit)
        if task is not None:
            query = query.where(events.c.task == task)
        with self.reading() as connection:
            return [
                Event(at=row.at, kind=row.kind, text=row.text, task=row.task, user=row.user, fields=row.fields)
                for row in connection.execute(query)
            ]
