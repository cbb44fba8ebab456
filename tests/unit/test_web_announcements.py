"""The web parses each announcement of a node once, however many pages show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_support import hello

from fedsim.store import open_store
from fedsim.store.records import Node
from fedsim.web import announcements
from fedsim.web.announcements import Announcements, NodeView


def test_only_what_is_new_is_read_and_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def view(node: Node) -> NodeView:
        parsed.append(node.name)
        return original(node)

    original = announcements._view
    monkeypatch.setattr(announcements, "_view", view)
    store = open_store(f"sqlite:///{tmp_path}/fedsim.db")
    store.migrate()
    for name in "ab":
        store.nodes.record(Node(name, 1.0, hello(name).model_dump(mode="json")))
    known = Announcements()
    for _ in range(3):
        assert [view.hello and view.hello.node for view in known.read(store)] == ["a", "b"]
    assert sorted(parsed) == ["a", "b"]

    store.nodes.record(Node("b", 2.0, {"node": "b"}))
    (unchanged, unreadable) = known.read(store)
    assert (unchanged.seen_at, unreadable.seen_at) == (1.0, 2.0)
    assert unreadable.hello is None
    assert unreadable.problem.startswith("the announcement of b is not a valid Hello")
    store.nodes.keep(["b"])
    assert [view.name for view in known.read(store)] == ["b"]
    assert sorted(parsed) == ["a", "b", "b"]
    store.close()
