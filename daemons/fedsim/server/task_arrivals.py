"""The files that arrive for a task on the server, read as events: only what a connection proved is used of a peer."""

from __future__ import annotations

import json
from collections.abc import Callable

from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.messages import PhaseAnswer, read_message
from fedsim.server.projection import TaskProjection
from fedsim.server.task_reports import TaskReports
from fedsim.spool.clear import clear_file
from fedsim.spool.files import Kind
from fedsim.spool.layout import Arrived
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import Event, PhaseAnswered, TestsetPartArrived, UpdateArrived
from fedsim.update import ClientFigures, Update


class TaskArrivals:
    """Reads the files of one task."""

    def __init__(self, plan: Plan, records: TaskProjection, reports: TaskReports) -> None:
        self._shares = {share.node: share for share in plan.shares}
        self._records = records
        self._reports = reports
        self._log = get_logger(task=plan.number)

    def read(self, item: Arrived, *, accepts_updates_of: Callable[[int], bool]) -> Event | None:
        """The event of a file; None if it cannot be used, and then it is removed."""
        match item.id.kind:
            case Kind.TESTSET:
                return TestsetPartArrived(item.sender or "", item.id.part or "")
            case Kind.ANSWER:
                return self._answer(item)
            case Kind.METRICS:
                return self._reports.read(item)
        if not accepts_updates_of(item.id.round or 0):
            clear_file(item.path)  # its metadata may have been cleared before it arrived
            return None
        return self._update(item)

    def _answer(self, item: Arrived) -> PhaseAnswered | None:
        try:
            return received_answer(item)
        except (BadInput, FileNotFoundError) as error:  # its phase may have ended without it
            self._log.warning("answer_refused", file=item.path.name, problem=str(error))
            clear_file(item.path)
            return None

    def _update(self, item: Arrived) -> UpdateArrived | None:
        try:
            update = received_update(item, self._records.base_digest(item.id.round or 0))
            return UpdateArrived(update.model_copy(update={"client_figures": self._figures_of(update)}))
        except BadInput as error:
            self._log.warning("update_refused", file=item.path.name, problem=str(error))
            clear_file(item.path)
            return None

    def _figures_of(self, update: Update) -> tuple[ClientFigures, ...]:
        """The figures of clients that this update can be of: its own, or those of its node."""
        share = self._shares.get(update.node or "")
        if share is None:
            return ()
        own = range(share.first_client, share.first_client + share.num_clients)
        if update.client is not None:
            own = range(update.client, update.client + 1)
        seen = {one.client: one for one in update.client_figures if one.client in own}
        return tuple(seen.values())


def received_update(item: Arrived, base_digest: str | None) -> Update:
    """The update in a file that arrived: only what the connection proved is used, not what the file claims.

    Args:
        item: the file.
        base_digest: of the file with the model from which the round's updates are trained, if it is known.

    Raises:
        BadInput: its metadata cannot be read, or it was trained from another model of its round.
    """
    metadata = item.metadata()
    update = read_message(Update, metadata.meta, f"the metadata of {item.path.name}")
    if base_digest is not None and update.base_digest not in {"", base_digest}:
        raise BadInput("it was trained from another model of this round, from before this server was restored")
    proved = {
        "node": metadata.sender,
        "base_round": item.id.round,
        "chunk": item.id.chunk,
        "client": item.id.client,
        "digest": metadata.digest,
        "size": metadata.size,
    }
    return update.model_copy(update=proved)


def received_answer(item: Arrived) -> PhaseAnswered:
    """The answer of an extension phase in a file that arrived.

    Raises:
        BadInput: it cannot be read.
        FileNotFoundError: its phase has ended meanwhile.
    """
    answer = read_message(PhaseAnswer, item.path.read_bytes(), f"the answer {item.path.name}")
    return PhaseAnswered(item.sender or "", item.id.phase or "", item.id.round or 0, json.dumps(answer.content))
