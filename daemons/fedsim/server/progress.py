"""What the pages show of a running task: its round and phase, and the nodes that it waits for."""

from __future__ import annotations

from fedsim.messages import TaskReport
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
        self._troubles: dict[str, str] = {}

    def node_reported(self, node: str, report: TaskReport) -> None:
        """A node reports what keeps it from training, or that nothing does."""
        if report.suspended is not None:
            self._troubles[node] = f"suspended: {report.suspended.words}"
        elif report.worker_deaths:
            times = "once" if report.worker_deaths == 1 else f"{report.worker_deaths} times in a row"
            self._troubles[node] = f"a worker died {times}"
        else:
            self._troubles.pop(node, None)

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
        """The node, and what keeps files from it or it from training, if anything does."""
        peers = self._context.nodes.addresses
        if node in peers and (trouble := self._context.outbox.trouble(peers[node])):
            return f"{peers[node]}: {trouble}"
        return f"{node}: {self._troubles[node]}" if node in self._troubles else node
