"""Evaluation where the data is: what the server sends to a node for it, and what the node answers.

No number of an answer is trusted: `problem_of` compares it with what the server knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum, sqrt
from typing import Annotated, Any

from pydantic import Field

from fedsim.data_schema import MAX_FEATURES, Finite
from fedsim.messages import Count, Message, Name, Text, Uid

MAX_METRICS = 100
MetricKey = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]


class Estimate(Message):
    """A metric with its 95 % confidence interval; None: it is not defined there, or was not estimated."""

    value: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None


class EvaluationOrder(Message):
    """The metadata of `evaluate`: the model comes with it. `scale`: as in `Broadcast`."""

    scale: Annotated[tuple[tuple[Finite, Finite], ...], Field(max_length=MAX_FEATURES)] = ()


class EvaluationReport(Message):
    """`metrics`: how a round's model does on a node's own held-out examples; `withheld`: why there is no number."""

    task: Uid
    node: Name
    round: Count
    num_examples: Count = 0
    withheld: Text = ""
    metrics: Annotated[dict[MetricKey, Estimate], Field(default_factory=dict, max_length=MAX_METRICS)]


def problem_of(report: EvaluationReport, number: int, most_examples: int, metrics: Mapping[str, bool]) -> str:
    """Why a report cannot be right; empty if it can.

    Args:
        report: of a node.
        number: of the round as which it came.
        most_examples: that it announced to hold out.
        metrics: of the objective, each with whether it is a share between 0 and 1.
    """
    if report.round != number:
        return f"it is about round {report.round}, and came as that of round {number}"
    if report.withheld:
        return "it withholds its numbers and reports some" if report.num_examples or report.metrics else ""
    if not 0 < report.num_examples <= most_examples:
        return f"it reports {report.num_examples} examples, and announced {most_examples}"
    for name, estimate in report.metrics.items():
        if name not in metrics:
            return f"{name} is not a metric of the objective"
        numbers = [number for number in (estimate.low, estimate.value, estimate.high) if number is not None]
        if metrics[name] and any(not 0 <= number <= 1 for number in numbers):
            return f"{name} is not between 0 and 1"
        if estimate.low is not None and estimate.high is not None and estimate.low > estimate.high:
            return f"the confidence interval of {name} ends before it begins"
    return ""


def combine(reports: Mapping[str, EvaluationReport], directions: Mapping[str, bool | None]) -> dict[str, Any]:
    """The metrics over all nodes, and the node that does worst by each; in the order of the nodes' names.

    The mean weights nodes by their examples. Its interval is that of a sum of independent estimates, from theirs (Zou
    and Donner 2008, "Construction of confidence limits about effect measures: a general approach", Statistics in
    Medicine 27, equation 3).

    Returns:
        `mean`: name -> (value, low, high), where low and high can be None; `worst`: name -> (node, value).
    """
    shown = {node: report for node, report in sorted(reports.items()) if not report.withheld}
    mean: dict[str, tuple[float, float | None, float | None]] = {}
    worst: dict[str, tuple[str, float]] = {}
    for name in sorted({name for report in shown.values() for name in report.metrics}):
        known = {
            node: (report.num_examples, estimate, estimate.value)
            for node, report in shown.items()
            if (estimate := report.metrics.get(name)) is not None and estimate.value is not None
        }
        if not known:
            continue
        total = sum(count for count, _, _ in known.values())
        value = fsum(count / total * of_node for count, _, of_node in known.values())
        below, above = [], []
        for count, estimate, of_node in known.values():
            if estimate.low is not None and estimate.high is not None:
                below.append((count / total * (of_node - estimate.low)) ** 2)
                above.append((count / total * (estimate.high - of_node)) ** 2)
        whole = len(below) == len(known)
        mean[name] = (value, value - sqrt(fsum(below)), value + sqrt(fsum(above))) if whole else (value, None, None)
        if (higher := directions.get(name)) is not None:
            choose = min if higher else max
            node = choose(known, key=lambda node: (known[node][2], node))
            worst[name] = node, known[node][2]
    return {"mean": mean, "worst": worst}
