"""What is recorded of the tests of a round's model on the nodes' own data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedsim.evaluation import EvaluationReport, combine
from fedsim.learning.objectives import metrics_of
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import RecordNodeTests
from fedsim.stop_conditions import directions
from fedsim.store.records import RoundRecord
from fedsim.text import rounded


def with_node_tests(plan: Plan, record: RoundRecord, tests: RecordNodeTests) -> RoundRecord:
    """The round's record with the tests of nodes; where the server does not test, their mean is the round's metrics."""
    reports = {report.node: report for report in tests.reports}
    both = combine(reports, directions(metrics_of(plan.settings).metrics))
    guarded = {share.node for share in plan.shares if share.guard is not None}
    nodes = {node: _shown(report, guarded=node in guarded) for node, report in reports.items()}
    found = {"nodes": nodes, "missing": list(tests.missing), **both}
    if plan.settings.evaluation != "nodes":
        return replace(record, node_metrics=found)
    return replace(record, node_metrics=found, metrics={name: value for name, (value, _, _) in both["mean"].items()})


def _shown(report: EvaluationReport, *, guarded: bool) -> dict[str, Any]:
    count = rounded(report.num_examples) if guarded else report.num_examples
    metrics = {name: (one.value, one.low, one.high) for name, one in report.metrics.items()}
    return {"num_examples": count, "withheld": report.withheld, "metrics": metrics}
