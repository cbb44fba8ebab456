"""The tests of a simulated task and what they decide: when it ends early, and which model is the best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fedsim.learning.evaluate import Evaluation, evaluate
from fedsim.learning.examples import Examples, FloatArray
from fedsim.learning.metrics import MetricValues
from fedsim.learning.networks import TaskNetwork, load_vector
from fedsim.learning.objectives import Objective
from fedsim.settings import TaskSettings
from fedsim.stop_conditions import TimeLimit, best_round, directions, parse_condition, reason_to_stop

if TYPE_CHECKING:

    from fedsim.learning.simulate import RoundResult


class SimulatedTests:
    """Tests the models of the rounds that are due, on one test set.

    Args:
        settings: the task's.
        objective: of the task.
        network: the task's, into which parameters are loaded.
        examples: the test set; None: nothing is tested.
        earlier: rounds that were simulated before; the best of them counts, but they do not end the task.
        best: the best of them, with its model.
    """

    def __init__(
        self,
        settings: TaskSettings,
        objective: Objective,
        network: TaskNetwork,
        examples: Examples | None,
        earlier: Iterable[RoundResult],
        best: tuple[int, FloatArray] | None,
    ) -> None:
        self.best = best
        self.reason_to_end = ""
        self._settings = settings
        self._objective = objective
        self._network = network
        self._examples = examples
        self._directions = directions(objective.metrics.metrics)
        conditions = map(parse_condition, settings.stop_when)
        self._conditions = [condition for condition in conditions if not isinstance(condition, TimeLimit)]
        self._earlier = [(result.round, result.metrics) for result in earlier if result.round and result.metrics]
        self._tests: list[tuple[int, MetricValues]] = []

    def rounds_after(self, number: int) -> Iterator[int]:
        """The rounds that follow until the last one, or until a test ends the task."""
        while number < self._settings.num_rounds and not self.reason_to_end:
            number += 1
            yield number

    def run(self, number: int, vector: FloatArray) -> Evaluation:
        """Test the round's model, float32 [P], if that is due; the result is empty if it is not."""
        settings = self._settings
        due = number % settings.evaluate_every == 0 or number == settings.num_rounds
        if self._examples is None or not due:
            return Evaluation(0, {}, {})
        load_vector(self._network.model, vector, self._network.roles)
        tested = evaluate(self._network.model, self._examples, objective=self._objective)
        if number:
            self._tests.append((number, tested.metrics))
            name = settings.keep_best
            higher = bool(self._directions.get(name))
            if name and best_round([*self._earlier, *self._tests], name, higher=higher) == number:
                self.best = number, vector
            if number < settings.num_rounds:
                self.reason_to_end = reason_to_stop(self._conditions, self._tests, 0.0, self._directions)
        return tested
