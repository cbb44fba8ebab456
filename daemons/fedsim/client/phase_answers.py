"""The questions of phases that a strategy or a transform adds, and a node's answers to them, as files.

A question stays in the spool until its answer is delivered. A restart answers it again; the server counts the first.
"""

from __future__ import annotations

import json
from pathlib import Path

from fedsim.client.audit_log import OfferedFile
from fedsim.client.context import NodeContext
from fedsim.learning.column_statistics import STATISTICS
from fedsim.messages import PhaseAnswer, PhaseRequest, read_message
from fedsim.spool.clear import clear_file
from fedsim.spool.files import FileId, Kind
from fedsim.state_machines.node_events import RequestArrived
from fedsim.worker.jobs import AnswerPhase


class PhaseAnswers:
    """Questions and answers of one task on a node."""

    def __init__(self, uid: str, context: NodeContext) -> None:
        self._uid = uid
        self._context = context

    def arrived(self) -> list[RequestArrived]:
        """The questions in the spool."""
        items = self._context.spool.arrived(Kind.REQUEST, self._uid)
        return [RequestArrived(item.id.phase or "", item.id.round or 0) for item in items]

    def job(self, phase: str, number: int) -> AnswerPhase:
        """What a worker does to answer a question."""
        body = self._path(phase, number).read_bytes()
        request = read_message(PhaseRequest, body, f"the server's request in the phase {phase}")
        return AnswerPhase(phase=phase, round=number, content=request.content)

    def answer(self, phase: str, number: int, content: str) -> OfferedFile:
        """An answer, as it is sent."""
        name = self._context.config.name
        found = json.loads(content)
        answer = PhaseAnswer(task=self._uid, phase=phase, round=number, content=found, node=name)
        body = answer.model_dump_json().encode()
        file = FileId(kind=Kind.ANSWER, task=self._uid, round=number, phase=phase)
        count = found.get("examples") if phase == STATISTICS else None
        return OfferedFile(file, body, len(body), count if isinstance(count, int) else None)

    def delivered(self, file: FileId) -> None:
        """The server has an answer: its question is used up."""
        clear_file(self._path(file.phase or "", file.round or 0))

    def _path(self, phase: str, number: int) -> Path:
        return self._context.spool.path(FileId(kind=Kind.REQUEST, task=self._uid, round=number, phase=phase), "")
