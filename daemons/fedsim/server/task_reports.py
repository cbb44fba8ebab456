"""The reports of nodes on models that they tested: read, compared with what the server knows, removed when recorded."""

from __future__ import annotations

from pathlib import Path

from fedsim.errors import BadInput
from fedsim.evaluation import EvaluationReport, problem_of
from fedsim.learning.metrics import MetricFormat
from fedsim.learning.objectives import metrics_of
from fedsim.log import get_logger
from fedsim.messages import as_text, read_message
from fedsim.server.context import ServerContext
from fedsim.spool.clear import clear_file
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Arrived
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import NodeTested
from fedsim.stop_conditions import LOSS
from fedsim.wire.sender import Outcome


class TaskReports:
    """The reports of one task."""

    def __init__(self, plan: Plan, context: ServerContext) -> None:
        self._plan = plan
        self._context = context
        self._log = get_logger(task=plan.number)
        described = metrics_of(plan.settings).metrics
        self._shares = {LOSS: False} | {
            metric.name: metric.format is MetricFormat.SHARE for metric in described if metric.one_number
        }
        self._held_out = {share.node: share.num_held_out for share in plan.shares}

    def read(self, item: Arrived) -> NodeTested | None:
        """The report in a file; None if it cannot be right, which is logged, and the file is removed."""
        node, number = item.sender or "", item.id.round or 0
        try:
            report = read_message(EvaluationReport, item.path.read_bytes(), f"the report {item.path.name}")
            problem = problem_of(report, number, self._held_out.get(node, 0), self._shares)
        except FileNotFoundError:  # its round was recorded meanwhile
            return None
        except BadInput as error:
            problem = str(error)
        if problem:
            self._log.warning("report_refused", node=node, round=number, problem=problem)
            clear_file(item.path)
            return NodeTested(self._without(node, number, f"its report was refused: {problem}"))
        return NodeTested(report)

    def refused(self, outcome: Outcome) -> NodeTested:
        """An empty report, of a node that refused the model."""
        number = outcome.file_id.round or 0
        return NodeTested(self._without(outcome.peer.name, number, f"it refused the model: {outcome.message}"))

    def path(self, node: str, number: int) -> Path:
        """Where the receiver puts a report."""
        return self._context.spool.path(FileId(kind=Kind.METRICS, task=self._plan.task, round=number), node)

    def clear(self, number: int) -> None:
        """Remove the reports of a round, which is recorded."""
        for item in self._context.spool.arrived(Kind.METRICS, self._plan.task, number):
            clear_file(item.path)

    def _without(self, node: str, number: int, why: str) -> EvaluationReport:
        return EvaluationReport(task=self._plan.task, node=node, round=number, withheld=as_text(why), metrics={})
