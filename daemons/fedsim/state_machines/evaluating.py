"""The part of a task's machine on the server that has models tested, by the server or by nodes, and decides with it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fedsim.learning.phases import Position
from fedsim.state_machines.phases import TASK_TRANSITIONS, TaskPhase
from fedsim.state_machines.task_events import Action, Finish, MetricPairs
from fedsim.state_machines.task_state import TaskMachineState


class EvaluatingTask(TaskMachineState, ABC):
    """A machine whose tests can end the task."""

    @abstractmethod
    def _advance(self, now: float) -> list[Action]:
        """Open the next round, or approach the end, as soon as everything that it needs is available."""

    def _move(self, phase: TaskPhase) -> None:
        self.phase = TASK_TRANSITIONS.move(self.phase, phase, self._trigger)

    def _testset_part_arrived(self, node: str, part: str, now: float) -> list[Action]:
        if self._models.testable or node != self.plan.testset_from:
            return []
        return self._models.add_testset_part(part) + self._advance(now)

    def _evaluated(self, number: int, metrics: MetricPairs, now: float) -> list[Action]:
        """The server tested a round."""
        self._course.add_test(number, metrics)
        return self._decide(self._models.was_evaluated(number, self._course.best), now)

    def _node_tests_completed(self, now: float) -> list[Action]:
        """Record the rounds that the nodes have tested, or had to test by now."""
        actions: list[Action] = []
        for record in self._models.node_tests.complete(self.plan.nodes, now):
            self._course.add_node_tests(record.round, record.reports)
            actions += self._decide([record, *self._models.nodes_tested(record.round, self._course.best)], now)
        return actions

    def _decide(self, actions: list[Action], now: float) -> list[Action]:
        """After a test: it may end the task. `actions` are those that follow from it already."""
        if self.ended:
            return actions
        if self._undecided:
            return actions + self._models.clear(self.committed)
        if not self._trained and (reason := self._course.reason_to_end(self.committed)):
            self._ending = reason
            self._models.last = self.committed
            self._move(TaskPhase.CLOSING)
            actions += self._models.process(self.committed)
        return actions + self._models.clear(self.committed) + self._advance(now)

    def _order_tests(self, now: float) -> list[Action]:
        """Have the nodes test what is due, as soon as they have loaded their data."""
        return [] if self.counts is None else self._models.order_tests(self._participants.present, now)

    def _gather_statistics(self, now: float) -> list[Action]:
        """Of a task that trains nothing: ask the nodes once their data is loaded, and end when all have answered."""
        if self.ended or self.counts is None:
            return []
        nodes = self._participants.present
        actions, complete = self._extensions.run(Position.BEFORE_TRAINING, 0, nodes, now)
        if not complete:
            return actions
        self._move(TaskPhase.ENDED)
        return [*actions, Finish("completed", f"statistics of {', '.join(nodes)}", self.plan.nodes)]
