"""The announcements of nodes, each read from the database and parsed once, however many pages show it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from fedsim.errors import BadInput
from fedsim.messages import Hello, read_message
from fedsim.store import Store
from fedsim.store.records import Node


@dataclass(frozen=True)
class NodeView:
    """A node for display; if its announcement cannot be read, `hello` is None and `problem` says why."""

    name: str
    seen_at: float
    online: bool
    hello: Hello | None
    problem: str = ""
    certificate_days: int | None = None


class Announcements:
    """The latest announcement of each node. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[str, NodeView] = {}

    def read(self, store: Store) -> list[NodeView]:
        """All nodes by name, as of now; only what is new is read. `online` and `certificate_days` are not set."""
        seen = store.nodes.seen()
        with self._lock:
            known = {name: view for name, view in self._views.items() if name in seen and view.seen_at == seen[name]}
            if missing := seen.keys() - known.keys():
                known |= {node.name: _view(node) for node in store.nodes.some(missing)}
            self._views = known
            return [known[name] for name in seen if name in known]


def _view(node: Node) -> NodeView:
    try:
        hello = read_message(Hello, node.hello, f"the announcement of {node.name}")
    except BadInput as error:
        return NodeView(node.name, node.seen_at, False, None, str(error))
    return NodeView(node.name, node.seen_at, False, hello)
