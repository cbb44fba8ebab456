"""What playbooks ask the server's database."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from database_support import Place
from sqlalchemy import text
from store_support import NOW, RUNNING, new_task, new_user
from web_support import hello

from fedsim.store.records import Node

PLAYBOOKS = Path(__file__).parents[2] / "ansible"


def waited_for() -> list[str]:
    """The queries of remove-node.yml that must return nothing before a drained node is removed."""
    plays = yaml.safe_load((PLAYBOOKS / "remove-node.yml").read_text(encoding="utf-8"))
    (task,) = [task for play in plays for task in play.get("tasks", []) if "until" in task]
    statements = task["ansible.builtin.command"]["stdin"].replace("{{ node }}", "node-a")
    return [statement.strip() for statement in re.split(";", statements) if statement.strip()]


def test_a_drained_node_is_removed_when_it_is_known_to_accept_no_tasks_and_its_own_have_ended(
    migrated_mariadb: Place,
) -> None:
    store = migrated_mariadb.open()

    def answers() -> list[list[tuple[object, ...]]]:
        with store.database.reading() as connection:
            return [[tuple(row) for row in connection.execute(text(query))] for query in waited_for()]

    try:
        new_user(store, "Ada")
        mine, other = new_task(store, state=RUNNING), new_task(store, state=RUNNING)
        store.tasks.set_nodes(mine.uid, ("node-a", "node-b"))
        store.tasks.set_nodes(other.uid, ("node-b", "node-ab"))
        store.nodes.record(Node("node-a", NOW, hello("node-a")))
        assert answers() == [[("announcement",)], [(mine.number,)]]
        store.nodes.record(Node("node-a", NOW, {**hello("node-a"), "accept_tasks": False}))
        assert answers() == [[], [(mine.number,)]]
        store.tasks.set_nodes(mine.uid, ("node-b",))
        assert answers() == [[], []]
    finally:
        store.close()
