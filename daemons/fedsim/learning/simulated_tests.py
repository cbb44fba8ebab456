"""The tests of a simulated task and what they decide: when it ends early, and which model is the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.evaluation import EvaluationReport, combine
from fedsim.learning.evaluate import Evaluation, evaluate
from fedsim.learning.examples import Examples, FloatArray
from fedsim.learning.held_out import ClientsHeldOut
from fedsim.learning.metrics import MetricValues
from fedsim.learning.networks import TaskNetwork, load_vector
from fedsim.learning.node_evaluation import evaluate_with_intervals
from fedsim.learning.objectives import Objective
from fedsim.learning.personal_tests import evaluate_own_models
from fedsim.settings import TaskSettings
from fedsim.stop_conditions import TimeLimit, best_round, directions, parse_condition, reason_to_stop
from fedsim.update import Arrays

if TYPE_CHECKING:
    from fedsim.learning.simulate import RoundResult


NO_TASK = "0" * 32


@dataclass(frozen=True)
class SimulatedNode:
    """A node's clients, and on what it tests models: the global one, or with `clients` those of its clients."""

    first_client: int
    num_clients: int
    examples: Examples
    clients: ClientsHeldOut | None = None


class SimulatedTests:
    """Tests the models of the rounds that are due, on one test set.

    Args:
        settings: the task's.
        objective: of the task.
        network: the task's, into which parameters are loaded.
        examples: the test set; None: nothing is tested on it.
        nodes: what each node holds out, for `evaluation: nodes` or `both`.
        earlier: rounds that were simulated before; the best of them counts, but they do not end the task.
        best: the best of them, with its model.
    """

    def __init__(
        self,
        settings: TaskSettings,
        objective: Objective,
        network: TaskNetwork,
        examples: Examples | None,
        nodes: Sequence[SimulatedNode],
        earlier: Iterable[RoundResult],
        best: tuple[int, FloatArray] | None,
    ) -> None:
        self.best = best
        self.reason_to_end = ""
        self._settings = settings
        self._objective = objective
        self._network = network
        self._examples = examples if settings.evaluation != "nodes" else None
        self._nodes = nodes if settings.evaluation != "server" else ()
        self.of_nodes: dict[str, Any] = {}
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

    def run(self, number: int, vector: FloatArray, state_of: Callable[[int], Arrays]) -> Evaluation:
        """Test the round's model, float32 [P], if that is due; the result is empty if it is not.

        `state_of` returns what a client kept after the round.

        `of_nodes` has then the tests on the nodes' own data, see `evaluation.combine`; where there are no others, their
        mean is the result.
        """
        settings, self.of_nodes = self._settings, {}
        due = settings.tests_round(number)
        if not due or (self._examples is None and not self._nodes):
            return Evaluation(0, {}, {})
        if self._nodes:
            self.of_nodes = self._test_on_nodes(number, vector, state_of)
        load_vector(self._network.model, vector, self._network.roles)
        if self._examples is not None:
            tested = evaluate(self._network.model, self._examples, objective=self._objective)
        else:
            mean: MetricValues = {name: value for name, (value, _, _) in self.of_nodes["mean"].items()}
            counts = [found["num_examples"] for found in self.of_nodes["nodes"].values()]
            tested = Evaluation(sum(counts), mean, {})
        if number:
            self._decide(number, tested.metrics, vector)
        return tested

    def _test_on_nodes(self, number: int, vector: FloatArray, state_of: Callable[[int], Arrays]) -> dict[str, Any]:
        reports = {}
        for here in self._nodes:
            seed = self._settings.seed, number, here.first_client
            if here.clients is None:
                load_vector(self._network.model, vector, self._network.roles)
                metrics = evaluate_with_intervals(self._network.model, here.examples, self._objective, seed)
                count = len(here.examples)
            else:
                clients = range(here.first_client, here.first_client + here.num_clients)
                count, metrics = evaluate_own_models(
                    self._network, vector, here.clients, clients, state_of, self._objective, seed
                )
            node = str(here.first_client)
            reports[node] = EvaluationReport(task=NO_TASK, node=node, round=number, num_examples=count, metrics=metrics)
        found = {node: {"num_examples": one.num_examples, "metrics": one.metrics} for node, one in reports.items()}
        return {"nodes": found, **combine(reports, self._directions)}

    def _decide(self, number: int, metrics: MetricValues, vector: FloatArray) -> None:
        settings, name = self._settings, self._settings.keep_best
        self._tests.append((number, metrics))
        higher = bool(self._directions.get(name))
        if name and best_round([*self._earlier, *self._tests], name, higher=higher) == number:
            self.best = number, vector
        if number < settings.num_rounds:
            self.reason_to_end = reason_to_stop(self._conditions, self._tests, 0.0, self._directions)
