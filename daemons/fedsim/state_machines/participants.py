"""The nodes of a task on the server: which are ready, with how many examples, and which take no part for now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fedsim.learning.partitions import make_partitioner, sizes_digest
from fedsim.messages import TaskReport
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.shares import NodeShare


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
        self._partitions: dict[str, str] = {}
        self._partitioner = make_partitioner(plan.settings)

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
        if (problem := self._impossible(node, counts, share)) is not None:
            return problem
        self._ready[node], self._partitions[node] = counts, report.partition
        if not self.not_ready:
            whole = tuple(count for name in self._plan.nodes for count in self._ready[name])
            if (problem := self._disagreement(whole)) is not None:
                return problem
            self.counts = whole
        return None

    def _impossible(self, node: str, counts: tuple[int, ...], share: NodeShare) -> str | None:
        """Why these cannot be the sizes of the node's clients, by what it announced."""
        num_train = share.num_train
        if num_train is None:  # planned by an older version
            return None
        guarded = share.guard is not None  # then the node divides blocks among its own clients
        size = None if guarded else self._partitioner.size(num_train, self._plan.settings.num_clients)
        if size is not None and set(counts) != {size}:
            wrong = next(count for count in counts if count != size)
            return f"node {node} reported a client with {wrong} examples; with its {num_train} it has {size}"
        if sum(counts) > num_train:
            return f"node {node} reported {sum(counts)} examples, it announced {num_train}"
        return None

    def _disagreement(self, counts: tuple[int, ...]) -> str | None:
        """Why these cannot be the sizes of one partition that all nodes computed alike."""
        if self._partitioner.per_node or not all(self._partitions.values()):
            return None
        digests = Counter(self._partitions.values())
        (common, agreeing), *others = digests.most_common()
        if others and agreeing > others[0][1]:
            liars = [node for node, digest in self._partitions.items() if digest != common]
            return f"node {', '.join(liars)} divided the data otherwise than the other nodes"
        if others:
            return f"the nodes {', '.join(self._partitions)} divided the data differently"
        if common != sizes_digest(counts):
            return (
                f"the examples that the nodes {', '.join(self._partitions)} reported are not those of their partition"
            )
        return None

    @property
    def heavy(self) -> tuple[str, ...]:
        """Notes on nodes with a larger share of the examples than server.yml allows without one."""
        if self.counts is None or len(self._plan.shares) == 1:
            return ()
        total = sum(self.counts)
        parts = {
            share.node: sum(self.counts[share.first_client : share.first_client + share.num_clients])
            for share in self._plan.shares
        }
        return tuple(
            f"{node} has {100 * part / total:.0f} % of the examples"
            for node, part in parts.items()
            if part > self._plan.max_node_weight * total
        )

    def leave(self, node: str, why: str) -> bool:
        """A node takes no part from now on; returns False if it did not before."""
        if node in self.absent:
            return False
        self.absent[node] = why
        return True

    def rejoin(self, node: str) -> bool:
        """A node takes part again; returns False if it did before."""
        return self.absent.pop(node, None) is not None
