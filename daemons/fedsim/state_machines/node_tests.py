"""The tests of committed models on the nodes' own held-out data: who is asked, what came, when a round is complete."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from fedsim.evaluation import EvaluationReport
from fedsim.state_machines.task_events import Action, DiscardReport, OrderEvaluation, RecordNodeTests


@dataclass
class _Open:
    """A round that is tested: the nodes that are awaited until the deadline, and what came."""

    deadline: float
    awaited: set[str]
    reports: dict[str, EvaluationReport] = field(default_factory=dict)


class NodeTests:
    """The rounds that nodes test. Each round is recorded once; what arrives later is discarded.

    Nothing of a round that is not recorded is kept here: after a restart the reports that have arrived are still files,
    and nodes that are asked again answer with the same numbers.

    Args:
        active: whether nodes test the models of this task.
        done: the rounds that are recorded.
        timeout_seconds: how long the reports of a round are awaited.
    """

    def __init__(self, done: Iterable[int], timeout_seconds: float, *, active: bool) -> None:
        self.active = active
        self.done = set(done)
        self._timeout = timeout_seconds
        self._open: dict[int, _Open] = {}

    @property
    def deadline(self) -> float | None:
        """When the first round that is tested has to be complete."""
        return min((one.deadline for one in self._open.values()), default=None)

    @property
    def awaited(self) -> tuple[str, ...]:
        """The nodes whose reports are awaited."""
        return tuple(sorted({node for one in self._open.values() for node in one.awaited}))

    def order(self, rounds: Iterable[int], nodes: Collection[str], now: float) -> list[Action]:
        """Ask the nodes to test the models of these rounds, as far as that was not done."""
        actions: list[Action] = []
        for number in rounds:
            if self.active and number not in self.done and number not in self._open:
                self._open[number] = _Open(now + self._timeout, set(nodes))
                actions += [OrderEvaluation(node, number) for node in nodes]
        return actions

    def repeat(self, node: str) -> list[Action]:
        """Ask a node again that lost what it was asked."""
        return [OrderEvaluation(node, number) for number, one in sorted(self._open.items()) if node in one.awaited]

    def node_left(self, node: str) -> None:
        """Expect nothing more from a node."""
        for one in self._open.values():
            one.awaited.discard(node)

    def add(self, report: EvaluationReport, nodes: Collection[str]) -> list[Action]:
        """A report has arrived; the first of each of `nodes` counts, while its round is open."""
        one = self._open.get(report.round)
        if one is None or report.node not in nodes:
            return [DiscardReport(report.node, report.round)]
        one.reports.setdefault(report.node, report)
        one.awaited.discard(report.node)
        return []

    def complete(self, nodes: Collection[str], now: float) -> list[RecordNodeTests]:
        """Close the rounds whose reports have all come, or whose deadline has passed, of a task on these nodes."""
        finished = [number for number, one in sorted(self._open.items()) if not one.awaited or now >= one.deadline]
        records = []
        for number in finished:
            one = self._open.pop(number)
            self.done.add(number)
            reports = tuple(report for _, report in sorted(one.reports.items()))
            records.append(RecordNodeTests(number, reports, tuple(sorted(set(nodes) - set(one.reports)))))
        return records
