"""When a task ends before its last round, and which of its models is the best: what its tests decide.

The setting `stop_when` lists conditions. They are looked at after each round that was tested, in the order in which
they are listed; the server and `simulate` decide with the same functions, from the same recorded values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Tests = Sequence[tuple[int, Mapping[str, float | None]]]
"""The tests of a task: the round and its metrics by name, in the order of the rounds."""

LOSS = "loss"
MAX_SECONDS = 10**9
FORMS = "must be like `accuracy >= 0.97`, `loss <= 0.1`, `patience 10 loss` or `time 3600`"
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_THRESHOLD = re.compile(rf"([A-Za-z][A-Za-z0-9_]{{0,63}}) ?(>=|<=) ?({_NUMBER})")
_PATIENCE = re.compile(r"patience ([1-9]\d{0,5}) ([A-Za-z][A-Za-z0-9_]{0,63})")
_TIME = re.compile(rf"time ({_NUMBER})")


@dataclass(frozen=True)
class Threshold:
    """A metric is at least, or at most, a value."""

    metric: str
    sign: Literal[">=", "<="]
    value: float

    def __str__(self) -> str:
        """The condition, as it is set."""
        return f"{self.metric} {self.sign} {_text(self.value)}"


@dataclass(frozen=True)
class Patience:
    """This many tests in a row were not better than the best one before them."""

    tests: int
    metric: str

    def __str__(self) -> str:
        """The condition, as it is set."""
        return f"patience {self.tests} {self.metric}"


@dataclass(frozen=True)
class TimeLimit:
    """The task has run for this many seconds."""

    seconds: float

    def __str__(self) -> str:
        """The condition, as it is set."""
        return f"time {_text(self.seconds)}"


Condition = Threshold | Patience | TimeLimit


def _text(value: float) -> str:
    """A number as short as it can be read back."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def parse_condition(text: str) -> Condition:
    """The condition that a text describes; raises `ValueError` if it has another form."""
    text = " ".join(text.split())
    if (found := _PATIENCE.fullmatch(text)) is not None:
        return Patience(int(found[1]), found[2])
    if (found := _TIME.fullmatch(text)) is not None and 0 < float(found[1]) <= MAX_SECONDS:
        return TimeLimit(float(found[1]))
    if (found := _THRESHOLD.fullmatch(text)) is not None:
        return Threshold(found[1], ">=" if found[2] == ">=" else "<=", float(found[3]))
    raise ValueError(FORMS)


def directions(metrics: Iterable[Any]) -> dict[str, bool | None]:
    """Whether higher values are better, of each metric that is one number of a test; every test has a loss.

    Args:
        metrics: descriptions of an objective's metrics, see `learning.metrics.Metric`.
    """
    found: dict[str, bool | None] = {LOSS: False}
    for metric in metrics:
        if metric.one_number:
            found[metric.name] = metric.higher_is_better
    return found


def metric_problems(metrics: Iterable[Any], stop_when: Iterable[str], keep_best: str) -> dict[str, str]:
    """What is wrong with the metrics that the settings `stop_when` and `keep_best` name, by the setting."""
    known = directions(metrics)
    problems: dict[str, str] = {}
    for text in stop_when:
        match parse_condition(text):
            case Threshold(name):
                problem = _problem(name, known, ordered=False)
            case Patience(_, name):
                problem = _problem(name, known, ordered=True)
            case TimeLimit():
                problem = ""
        if problem:
            problems.setdefault("stop_when", f"{problem} (in `{text}`)")
    if keep_best and (problem := _problem(keep_best, known, ordered=True)):
        problems["keep_best"] = problem
    return problems


def _problem(name: str, known: Mapping[str, bool | None], *, ordered: bool) -> str:
    if name not in known:
        return f"{name} is not a metric of the objective; its metrics are {', '.join(sorted(known))}"
    return f"of {name} neither high nor low values are better" if ordered and known[name] is None else ""


def best_round(tests: Tests, metric: str, *, higher: bool) -> int | None:
    """The round with the best value of a metric, the first one of equal values; None if no test has a value."""
    found: tuple[float, int] | None = None
    for number, values in tests:
        value = values.get(metric)
        if value is not None and (found is None or (value > found[0] if higher else value < found[0])):
            found = value, number
    return None if found is None else found[1]


def reason_to_stop(
    conditions: Iterable[Condition], tests: Tests, seconds: float, known: Mapping[str, bool | None]
) -> str:
    """Why a task ends after the newest of its tests, as the end of a sentence; empty if it goes on.

    Args:
        conditions: of the task, in order: the first that holds gives the reason.
        tests: of the task.
        seconds: for which the task had run when the tested round was committed.
        known: see `directions`.
    """
    if not tests:
        return ""
    number, newest = tests[-1]
    for condition in conditions:
        match condition:
            case Threshold(metric, sign, bound):
                value = newest.get(metric)
                if value is not None and (value >= bound if sign == ">=" else value <= bound):
                    return f"{metric} is {value:.6g}, which meets `{condition}`"
            case Patience(most, metric):
                best = best_round(tests, metric, higher=bool(known.get(metric)))
                later = 0 if best is None else sum(tested > best for tested, _ in tests)
                if later >= most:
                    return f"{metric} has not improved in {later} tests since round {best}, which meets `{condition}`"
            case TimeLimit(limit):
                if seconds >= limit:
                    return f"{seconds:.0f} s had passed at round {number}, which meets `{condition}`"
    return ""
