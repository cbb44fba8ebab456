"""The nodes of a task on the server: which are ready, with how many examples, and which take no part for now."""

from __future__ import annotations

from collections.abc import Mapping

from fedsim.messages import TaskReport
from fedsim.state_machines.plan import Plan


class Participants:
    """The nodes of one task.

    Attributes:
        counts: examples of each client, once all nodes were ready: from then on they are fixed.
        absent: the nodes that take no part for now, and why.
    """

    def __init__(self, plan: Plan, counts: tuple[int, ...] | None, absent: Mapping[str, str]) -> None:
        self.counts = counts
        self.absent = dict(absent)
        self._plan = plan
        self._ready: dict[str, tuple[int, ...]] = {}

    @property
    def present(self) -> tuple[str, ...]:
        """The nodes that take part, in the plan's order."""
        return tuple(node for node in self._plan.nodes if node not in self.absent)

    @property
    def not_ready(self) -> tuple[str, ...]:
        """The nodes whose data is not loaded yet."""
        return tuple(node for node in self._plan.nodes if node not in self._ready) if self.counts is None else ()

    def add_ready(self, node: str, report: TaskReport) -> str | None:
        """Note a node whose data is loaded; returns why its report cannot be right, if so."""
        share = next(share for share in self._plan.shares if share.node == node)
        if sum(clients for clients, _ in report.num_examples) != share.num_clients:
            return f"node {node} reported examples of other clients than its own"
        counts = tuple(count for clients, count in report.num_examples for _ in range(clients))
        if self.counts is not None:
            fixed = self.counts[share.first_client : share.first_client + share.num_clients]
            return None if counts == fixed else f"node {node}'s data changed during the task: start it again"
        self._ready[node] = counts
        if not self.not_ready:
            self.counts = tuple(count for name in self._plan.nodes for count in self._ready[name])
        return None

    def leave(self, node: str, why: str) -> bool:
        """A node takes no part from now on; returns False if it did not before."""
        if node in self.absent:
            return False
        self.absent[node] = why
        return True

    def rejoin(self, node: str) -> bool:
        """A node takes part again; returns False if it did before."""
        return self.absent.pop(node, None) is not None
