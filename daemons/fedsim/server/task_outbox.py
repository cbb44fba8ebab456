"""What a task sends to its nodes."""

from __future__ import annotations

import json
from pathlib import Path

from fedsim.evaluation import EvaluationOrder
from fedsim.messages import Broadcast, PhaseRequest
from fedsim.server.context import ServerContext
from fedsim.server.projection import TaskProjection
from fedsim.server.task_dir import TaskDir
from fedsim.spool.files import FileId, Kind
from fedsim.state_machines import task_events as events
from fedsim.state_machines.plan import Plan


def send_assignment(context: ServerContext, plan: Plan, node: str, *, begin: bool) -> None:
    """Send a node its part of a plan: the task begins there, or its owner is to approve it."""
    assignment = plan.assignment(node).model_copy(update={"begin": begin})
    file = FileId(kind=Kind.INITPARAM, task=plan.task)
    context.outbox.send_newest(context.nodes.addresses[node], file, assignment.model_dump_json().encode())


class TaskOutbox:
    """Composes a task's files for its nodes and hands them to the daemon's outbox."""

    def __init__(self, plan: Plan, context: ServerContext, folder: TaskDir, records: TaskProjection) -> None:
        self._plan = plan
        self._context = context
        self._folder = folder
        self._records = records

    def assign(self, node: str) -> None:
        """Send a node its part of the plan; replaces what asks for its owner's approval."""
        send_assignment(self._context, self._plan, node, begin=True)

    def send_global(self, action: events.SendGlobal) -> None:
        """Send a node what its clients receive in a round."""
        file = FileId(kind=Kind.GLOBALPARAM, task=self._plan.task, round=action.round)
        path, digest = self._folder.broadcast(file.made_in), self._records.broadcast_digest(file.made_in)
        self._send_parameters(action.node, file, action.broadcast, path, digest)

    def send_final(self, action: events.SendFinal) -> None:
        """Send a node the final model."""
        last, released = action.round, action.round if action.released is None else action.released
        file, broadcast = FileId.model_of(self._plan.task, last), Broadcast.of_final_model(last)
        path, digest = self._folder.model(released), self._records.file_digest(released)
        self._send_parameters(action.node, file, broadcast, path, digest)

    def order_evaluation(self, action: events.OrderEvaluation) -> None:
        """Send a node a model that it is to test."""
        file = FileId(kind=Kind.EVALUATE, task=self._plan.task, round=action.round)
        meta = EvaluationOrder(scale=self._folder.common_scale(self._plan)).model_dump(mode="json")
        peer, path = self._context.nodes.addresses[action.node], self._folder.model(action.round)
        self._context.outbox.send(peer, file, path, meta=meta, digest=self._records.file_digest(action.round))

    def cancel_evaluation(self, number: int) -> None:
        """Stop sending a model that was to be tested: it is recorded without the nodes that did not report."""
        wanted = (Kind.EVALUATE, self._plan.task, number)
        self._context.outbox.cancel(lambda file: (file.kind, file.task, file.round) == wanted)

    def request_answer(self, action: events.RequestAnswer) -> None:
        """Send a node the question of an extension phase."""
        content = json.loads(action.content)
        request = PhaseRequest(task=self._plan.task, phase=action.phase, round=action.round, content=content)
        file = FileId(kind=Kind.REQUEST, task=self._plan.task, round=action.round, phase=action.phase)
        self._send(action.node, file, request.model_dump_json().encode())

    def cancel_global(self, number: int) -> None:
        """Stop sending a round's parameters: a node that has not received them by now does not need them any more."""
        wanted = (Kind.GLOBALPARAM, self._plan.task, number)
        self._context.broadcasts.cancel(lambda file: (file.kind, file.task, file.round) == wanted)

    def cancel_requests(self, phase: str) -> None:
        """Stop sending the question of a phase that is complete."""
        wanted = (Kind.REQUEST, self._plan.task, phase)
        self._context.outbox.cancel(lambda file: (file.kind, file.task, file.phase) == wanted)

    def _send(self, node: str, file: FileId, source: bytes) -> None:
        self._context.outbox.send(self._context.nodes.addresses[node], file, source)

    def _send_parameters(self, node: str, file: FileId, broadcast: Broadcast, path: Path, digest: str) -> None:
        scale = self._folder.common_scale(self._plan)
        meta = broadcast.model_copy(update={"scale": scale}).model_dump(mode="json")
        self._context.broadcasts.send(node, file, path, meta=meta, digest=digest)
