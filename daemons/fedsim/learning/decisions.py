"""What the tests of a simulated task decide, as on the platform: when it ends early, and which model is the best."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedsim.learning.examples import FloatArray
from fedsim.learning.metrics import MetricValues
from fedsim.learning.objectives import Objective
from fedsim.settings import TaskSettings
from fedsim.stop_conditions import TimeLimit, best_round, directions, parse_condition, reason_to_stop

if TYPE_CHECKING:
    from fedsim.learning.simulate import RoundResult


class Decisions:
    """The tests of a simulation.

    Args:
        settings: the task's.
        objective: of the task.
        earlier: rounds that were simulated before; the best of them counts, but they do not end the task.
        best: the best of them, with its model.
    """

    def __init__(
        self,
        settings: TaskSettings,
        objective: Objective,
        earlier: Iterable[RoundResult],
        best: tuple[int, FloatArray] | None,
    ) -> None:
        self.best = best
        self.reason_to_end = ""
        self._settings = settings
        self._directions = directions(objective.metrics.metrics)
        conditions = map(parse_condition, settings.stop_when)
        self._conditions = [condition for condition in conditions if not isinstance(condition, TimeLimit)]
        self._earlier = [(result.round, result.metrics) for result in earlier if result.round and result.metrics]
        self._tests: list[tuple[int, MetricValues]] = []

    def add(self, number: int, metrics: MetricValues, vector: FloatArray) -> None:
        """A round was simulated; `metrics` are empty if it was not tested. Its model is float32 [P]."""
        if not number or not metrics:
            return
        self._tests.append((number, metrics))
        name = self._settings.keep_best
        higher = bool(self._directions.get(name))
        if name and best_round([*self._earlier, *self._tests], name, higher=higher) == number:
            self.best = number, vector
        if number < self._settings.num_rounds:
            self.reason_to_end = reason_to_stop(self._conditions, self._tests, 0.0, self._directions)
