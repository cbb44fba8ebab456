"""The end of a task: the final model is sent to the nodes, and their receipt is awaited for a limited time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsim.state_machines.task_events import Action, SendFinal

# A node that has not received the final model by then receives it after the task's end.
FINAL_DELIVERY_SECONDS = 10.0


class FinalDelivery:
    """Which nodes have yet to receive the final model. Before `start` there is nothing to deliver."""

    def __init__(self) -> None:
        self.started = False
        self.deadline: float | None = None
        self._pending: set[str] = set()
        self._released: int | None = None

    @property
    def pending(self) -> tuple[str, ...]:
        """The nodes that the final model is on its way to."""
        return tuple(sorted(self._pending))

    def start(self, nodes: Sequence[str], last_round: int, released: int | None, now: float) -> list[Action]:
        """Send the final model to these nodes: that of the round `released`, or of the last one."""
        self.started = True
        self.deadline = now + FINAL_DELIVERY_SECONDS
        self._pending = set(nodes)
        self._released = released
        return [SendFinal(node, last_round, released) for node in nodes]

    def add(self, node: str, last_round: int) -> list[Action]:
        """Send it to a further node, if it is being sent already."""
        if not self.started:
            return []
        self._pending.add(node)
        return [SendFinal(node, last_round, self._released)]

    def settle(self, node: str) -> None:
        """Stop waiting for a node."""
        self._pending.discard(node)

    def finished(self, now: float) -> bool:
        """Whether all nodes have it, or the deadline has passed."""
        return self.started and (not self._pending or (self.deadline is not None and now >= self.deadline))

    def outcome(self, done: str, absent: Mapping[str, str]) -> str:
        """How the task was completed: what was `done`; `absent`: nodes that do not receive the model, and why."""
        reason = done
        if self._pending:
            reason += f"; the final model still goes to {', '.join(self.pending)}"
        if absent:
            without = ", ".join(f"{node} ({why})" for node, why in sorted(absent.items()))
            reason += f"; without the final model: {without}"
        return reason
