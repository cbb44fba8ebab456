"""The models that a node is to test on its held-out examples, and its reports on them, as files.

A model stays in the spool until the server has the report on it. A restart tests it again, with the same numbers; the
server counts the first report.
"""

from __future__ import annotations

from pathlib import Path

from fedsim.client.audit_log import OfferedFile
from fedsim.client.context import NodeContext
from fedsim.evaluation import EvaluationOrder, EvaluationReport
from fedsim.messages import read_message
from fedsim.settings import TaskSettings
from fedsim.spool.clear import clear_file
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import read_metadata
from fedsim.state_machines.node_events import EvaluationOrdered
from fedsim.worker.evaluation_jobs import TestHeldOut

KEPT_TESTS = 3
"""Rounds due to be tested after which states of clients stay, although the server has not asked for the test yet."""


class ModelTests:
    """Models and reports of one task on a node."""

    def __init__(self, uid: str, context: NodeContext) -> None:
        self._uid = uid
        self._context = context

    def awaited(self, settings: TaskSettings, number: int) -> tuple[int, ...]:
        """The rounds before `number` whose tests may still need what clients kept after them."""
        if settings.evaluation == "server":
            return ()
        newest = (number - 1) // settings.evaluate_every * settings.evaluate_every
        due = range(newest, -1, -settings.evaluate_every)[:KEPT_TESTS]
        return tuple(sorted({*due, *(order.round for order in self.arrived())}))

    def arrived(self) -> list[EvaluationOrdered]:
        """The models in the spool."""
        return [EvaluationOrdered(item.id.round or 0) for item in self._context.spool.arrived(Kind.EVALUATE, self._uid)]

    def job(self, number: int) -> TestHeldOut:
        """What a worker does to test the model of a round."""
        path, config = self._path(number), self._context.config
        metadata = read_metadata(path)
        order = read_message(EvaluationOrder, metadata.meta, f"metadata of {path.name}")
        least = config.institution.min_test_examples
        return TestHeldOut(
            round=number,
            node=config.name,
            model=path,
            digest=metadata.digest,
            scale=order.scale,
            min_examples=least,
            states=self._context.spool.folder(Kind.LOCALPARAM) / self._uid,
        )

    def report(self, number: int, content: str) -> OfferedFile:
        """A report, as it is sent."""
        count = EvaluationReport.model_validate_json(content).num_examples
        body = content.encode()
        return OfferedFile(FileId(kind=Kind.METRICS, task=self._uid, round=number), body, len(body), count)

    def delivered(self, file: FileId) -> None:
        """The server has a report: the model is not needed any more."""
        clear_file(self._path(file.round or 0))

    def _path(self, number: int) -> Path:
        return self._context.spool.path(FileId(kind=Kind.EVALUATE, task=self._uid, round=number), "")
