"""What the course of a task decides: whether it ends early, which round is the best, what users are warned of."""

from __future__ import annotations

from collections.abc import Iterable

from fedsim.evaluation import EvaluationReport, combine
from fedsim.learning.objectives import metrics_of
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import MetricPairs, Restored, Totals
from fedsim.stop_conditions import (
    Patience,
    Threshold,
    TimeLimit,
    best_round,
    directions,
    parse_condition,
    reason_to_stop,
)


class TaskCourse:
    """The tests of a task and its totals, and what follows from them.

    The round after a tested one opens only once its test is recorded, if the task has conditions (`decides`): so the
    same record always gives the same decision. In a task that got more rounds only the further ones count for them.

    Args:
        plan: of the task.
        restored: what is stored of it.
    """

    def __init__(self, plan: Plan, restored: Restored) -> None:
        self.totals = restored.totals
        self._settings = plan.settings
        self._continued_after = plan.continued_after or 0
        self._conditions = tuple(map(parse_condition, plan.settings.stop_when))
        self._directions = directions(metrics_of(plan.settings).metrics)
        named = (condition.metric for condition in self._conditions if isinstance(condition, Threshold | Patience))
        self._names = frozenset((*named, plan.settings.keep_best)) - {""}
        self._timed = any(isinstance(condition, TimeLimit) for condition in self._conditions)
        self._tests = {number: dict(values) for number, values in restored.tests if 0 < number <= restored.committed}
        self._began = 0.0
        self._waited = restored.waited

    @property
    def decides(self) -> bool:
        """Whether the tests of the task can end it."""
        return bool(self._conditions)

    @property
    def tests(self) -> tuple[tuple[int, MetricPairs], ...]:
        """The tests, as they are restored."""
        return tuple((number, tuple(values.items())) for number, values in sorted(self._tests.items()))

    @property
    def best(self) -> int | None:
        """The best round so far by the metric `keep_best`; round 0 is none of the task's."""
        name = self._settings.keep_best
        if not name:
            return None
        return best_round(sorted(self._tests.items()), name, higher=bool(self._directions.get(name)))

    @property
    def warning(self) -> str:
        """What users of the result are warned of; empty for nothing."""
        missing, expected = self.totals.missing, self.totals.expected
        share = missing / expected if expected else 0.0
        if share <= self._settings.max_missing_share:
            return ""
        return (
            f"{share:.1%} of the examples that the rounds were to use were missing, more than the "
            f"{self._settings.max_missing_share:.1%} of max_missing_share: the model may not stand for all of the data"
        )

    def begin(self, now: float) -> None:
        """The machine begins at this time."""
        self._began = now - self.totals.seconds - self._waited

    def add_test(self, number: int, metrics: MetricPairs) -> None:
        """A round was tested; only metrics that decide something are kept."""
        if number > 0:
            self._tests[number] = {name: value for name, value in metrics if name in self._names}

    def add_node_tests(self, number: int, reports: Iterable[EvaluationReport]) -> None:
        """Nodes tested a round: where the server does not, what counts is their mean."""
        if self._settings.evaluation == "nodes":
            mean = combine({report.node: report for report in reports}, self._directions)["mean"]
            self.add_test(number, tuple((name, value) for name, (value, _, _) in mean.items()))

    def add_round(self, missing: int, expected: int, now: float) -> None:
        """A round is committed, of whose `expected` examples these were `missing`."""
        seconds = round(now - self._began, 3) if self._timed else 0.0
        self.totals = Totals(seconds, self.totals.missing + missing, self.totals.expected + expected)

    def reason_to_end(self, committed: int) -> str:
        """Why the task ends with the newest committed round, before its last one; empty if it does not."""
        if not self._conditions or committed not in self._tests or committed >= self._settings.num_rounds:
            return ""
        if committed <= self._continued_after:
            return ""
        tests = [(number, values) for number, values in sorted(self._tests.items()) if number > self._continued_after]
        return reason_to_stop(self._conditions, tests, self.totals.seconds, self._directions)
