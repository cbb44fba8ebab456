"""What the pages show of a running task: its round and phase, and the nodes that it waits for."""

from __future__ import annotations

from fedsim.errors import SuspendReason
from fedsim.server.context import ServerContext
from fedsim.server.projection import TaskProjection
from fedsim.state_machines.task import TaskMachine
from fedsim.store.records import Progress

PROGRESS_SECONDS = 0.25
# How much of a deadline a restart of the server may forget.
WAITED_SECONDS = 10.0


class TaskProgress:
    """Computes the progress of one task, as often as it may change."""

    def __init__(self, context: ServerContext, records: TaskProjection) -> None:
        self.due = 0.0
        self._waited_due = 0.0
        self._context = context
        self._records = records
        self._suspended: dict[str, SuspendReason] = {}

    def node_reported(self, node: str, suspended: SuspendReason | None) -> None:
        """A node reports that it has suspended the task, or that it has not."""
        if suspended is None:
            self._suspended.pop(node, None)
        else:
            self._suspended[node] = suspended

    def update(self, machine: TaskMachine, now: float) -> Progress | None:
        """The progress of the task, if it has changed; then the next one is `due` after some time."""
        progress = self._records.new_progress(machine, tuple(self._describe(node) for node in machine.waiting_for))
        if progress is not None:
            self.due = now + PROGRESS_SECONDS
        return progress

    def waited(self, machine: TaskMachine, now: float) -> tuple[int, float] | None:
        """For how long the round has waited, where it is time to record it."""
        if now < self._waited_due:
            return None
        self._waited_due = now + WAITED_SECONDS
        return machine.waited(now)

    def suspended(self, machine: TaskMachine, problem: str) -> Progress:
        """The progress of a task that is suspended here."""
        return Progress(machine.round, machine.step, (f"the server: {problem}",))

    def status(self, machine: TaskMachine, number: int, rounds: int) -> str:
        """For `systemctl status`."""
        name, latest = self._records.latest_headline
        metric = "" if latest is None else f", {name} {latest:.4f}"
        return f"task {number}: {machine.step}, round {machine.round} of {rounds}{metric}"

    def _describe(self, node: str) -> str:
        """The node, and what keeps files from it or why it has suspended the task, if it has."""
        peers = self._context.nodes.addresses
        if node in peers and (trouble := self._context.outbox.trouble(peers[node])):
            return f"{peers[node]}: {trouble}"
        return f"{node}: suspended: {self._suspended[node].words}" if node in self._suspended else node
