"""A node with its owner's socket and page, in this process, and a task that waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

import httpx

from fedsim.client.approvals import PendingApprovals
from fedsim.client.audit_log import AuditLog
from fedsim.client.owner_socket import Order, OwnerSocket
from fedsim.config import ClientConfig
from fedsim.messages import Assignment, EngineInfo, ModelSpec, Uplink
from fedsim.owner.page import OwnerPage, PageHandler, PageServer
from fedsim.settings import TaskSettings

ASKING = ClientConfig.model_validate(
    {
        "name": "node-a",
        "server": {"port": 1},
        "datasets": [{"name": "mnist", "path": "m", "require_approval": True}],
        "owner_socket": "/run/x.sock",
    }
)


def asked_task(**changes: Any) -> Assignment:
    """A task of ada's on the node, which the owner is asked about."""
    settings = TaskSettings(purpose="<b>study</b>", num_clients=100, num_rounds=20, dataset="mnist")
    return Assignment(
        task="5" * 32,
        number=7,
        settings=settings,
        first_client=0,
        num_clients=50,
        model_spec=ModelSpec(name="2nn", feature_shape=(784,), num_classes=10),
        engine=EngineInfo(),
        uplink=Uplink.SUM,
        user="ada",
    ).model_copy(update=changes)


class OwnedNode:
    """The daemon's end of the socket, and the page before it."""

    def __init__(self, folder: Path) -> None:
        self.log = AuditLog(folder / "audit.jsonl").open()
        self.approvals = PendingApprovals(self.log)
        self.approvals.must_wait(asked_task(), ASKING)
        self.socket = OwnerSocket(folder / "owner.sock", "node-a", self.log.path)
        self.socket.open()
        self.socket_closed = False
        self.socket.pending = self.approvals.waiting
        self.page = OwnerPage(folder / "owner.sock")
        self.server = make_server("127.0.0.1", 0, self.page, PageServer, PageHandler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def browser(self, **headers: str) -> httpx.Client:
        address = f"http://127.0.0.1:{self.server.server_port}"
        return httpx.Client(base_url=address, headers=headers, follow_redirects=True, timeout=30)

    def decide(self) -> list[Order]:
        """Answer the orders that have arrived, as the daemon does."""
        orders = []
        while not orders:
            orders = self.socket.orders()
        for order in orders:
            assignment, problem = self.approvals.find(order.uid, order.digest)
            if assignment is not None:
                self.log.decide(assignment, "server", order.decision)
            order.answer.set_result(problem)
        self.socket.pending = ()
        return orders


@contextmanager
def owned_node(folder: Path) -> Iterator[OwnedNode]:
    found = OwnedNode(folder)
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()
        if not found.socket_closed:
            found.socket.close()
