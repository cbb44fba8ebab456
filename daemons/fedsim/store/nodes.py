"""Nodes and their announcements."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, select

from fedsim.store.connections import Database, upsert
from fedsim.store.records import Node
from fedsim.store.rows import to_record, to_values
from fedsim.store.schema import nodes


class NodeStore:
    """The table of nodes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, node: Node) -> None:
        """Insert or overwrite the announcement of the node."""
        with self._database.writing() as connection:
            upsert(connection, nodes, {"name": node.name}, to_values(node, without=("name",)))

    def keep(self, names: Collection[str]) -> None:
        """Delete every node that is not one of these."""
        with self._database.writing() as connection:
            connection.execute(delete(nodes).where(nodes.c.name.not_in(names)))

    def seen(self) -> dict[str, float]:
        """When each node last announced itself, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(nodes.c.name, nodes.c.seen_at).order_by(nodes.c.name))
            return {row.name: row.seen_at for row in rows}

    def some(self, names: Collection[str]) -> list[Node]:
        """The nodes with these names."""
        with self._database.reading() as connection:
            rows = connection.execute(select(nodes).where(nodes.c.name.in_(list(names)))).mappings()
            return [to_record(Node, row) for row in rows]

    def all(self) -> list[Node]:
        """All nodes, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(nodes).order_by(nodes.c.name)).mappings()
            return [to_record(Node, row) for row in rows]
