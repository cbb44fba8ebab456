"""What the owner of a node's data sees of the tasks that wait for approval, and what becomes of a decision."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from fedsim.client.approvals import PendingApprovals
from fedsim.client.context import NodeContext
from fedsim.client.owner_socket import Order, OwnerSocket
from fedsim.messages import Assignment
from fedsim.runtime.event_loop import EventLoop


class OwnerDesk:
    """Serves the owner's socket, if client.yml has one."""

    def __init__(self, context: NodeContext, approvals: PendingApprovals, on_decision: Callable[[], None]) -> None:
        self._context = context
        self._approvals = approvals
        self._on_decision = on_decision
        self._socket: OwnerSocket | None = None

    def open(self, loop: EventLoop) -> None:
        """Listen."""
        config = self._context.config
        if config.owner_socket is not None:
            owner = self._socket = OwnerSocket(config.owner_socket, config.name, self._context.audit_log.path)
            owner.open()
            loop.watch(owner, self._decided)

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            self._socket.close()

    def publish(self) -> None:
        """Show the owner the tasks that wait, and the server that they do."""
        if self._approvals.changed():
            if self._socket is not None:
                self._socket.pending = self._approvals.waiting
            self._context.announce()

    def _decided(self) -> None:
        for order in self._socket.orders() if self._socket is not None else ():
            assignment, problem = self._approvals.find(order.uid, order.digest)
            if assignment is None:
                order.answer.set_result(problem)
                continue
            log, server = self._context.audit_log, self._context.server.name
            decide = partial(log.decide, assignment, server, order.decision)
            self._context.writer.submit(decide, partial(self._stored, order, assignment))

    def _stored(self, order: Order, assignment: Assignment, stored: Future[None]) -> None:
        try:
            stored.result()
        except OSError as error:
            order.answer.set_result(f"the decision cannot be recorded: {error.strerror}")
            raise
        self._approvals.decided(assignment, order.decision)
        order.answer.set_result("")
        self._on_decision()
