"""The course of one task on a node: a table of (event -> actions), as on the server.

loading --data loaded--> ready --globalparam--> train its chunks one after another --> send --> ready ...
an update stays until the next globalparam says that it was used; the final model ends the task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fedsim.messages import MAX_RUNS, MAX_TEXT, Assignment, Broadcast, Chunk, TaskReport

# ---------------------------------------------------------------- what can happen


@dataclass(frozen=True)
class Loaded:
    """A worker holds the task's data; `num_examples` as runs of (how many clients, examples of each), in order."""

    num_examples: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class GlobalArrived:
    """A verified `globalparam` of `round` lies in the spool, with what this node trains in that round."""

    round: int
    broadcast: Broadcast


@dataclass(frozen=True)
class Trained:
    """A chunk's updates lie on disk, ready to be sent."""

    round: int
    chunk: int


@dataclass(frozen=True)
class Diverged:
    """A client's parameters are no longer finite."""

    round: int
    client: int


@dataclass(frozen=True)
class Failed:
    """The task cannot go on here; `refused` where the institution's limits forbid it.

    `round` is that of the chunk that could not be trained, None where it was something else that failed.
    """

    reason: str
    refused: bool = False
    round: int | None = None


@dataclass(frozen=True)
class WorkersIdle:
    """So many workers have nothing to do now."""

    count: int


@dataclass(frozen=True)
class FinalKept:
    """The final model lies where predictions find it."""


@dataclass(frozen=True)
class Stopped:
    """The server says that the task is over."""


Event = Loaded | GlobalArrived | Trained | Diverged | Failed | WorkersIdle | FinalKept | Stopped


# ---------------------------------------------------------------- what is to be done


@dataclass(frozen=True)
class Load:
    """Start the workers and let them load the task's data."""


@dataclass(frozen=True)
class Report:
    """Tell the server at once how the task stands here."""


@dataclass(frozen=True)
class SendTestset:
    """Send the test set: the server asked, and the configuration allows it."""


@dataclass(frozen=True)
class Train:
    """Give the chunk to a free worker."""

    round: int
    chunk: Chunk


@dataclass(frozen=True)
class SendUpdates:
    """Send the chunk's updates."""

    round: int
    chunk: int


@dataclass(frozen=True)
class ClearUpdates:
    """Updates of rounds up to this one were used."""

    through: int


@dataclass(frozen=True)
class ClearGlobals:
    """Global models of rounds before this one are used up."""

    before: int


@dataclass(frozen=True)
class KeepFinal:
    """Keep the final model, that of `globalparam` `round`, for predictions on this node."""

    round: int


@dataclass(frozen=True)
class EndWorkers:
    """Nothing is left to compute here: free what the workers hold."""


@dataclass(frozen=True)
class End:
    """Stop the workers and clear everything of the task that is used up."""


Action = Load | Report | SendTestset | Train | SendUpdates | ClearUpdates | ClearGlobals | KeepFinal | EndWorkers | End


class NodeMachine:
    """One task on one node. `begin` once, then `handle` for every event; both return actions in order."""

    def __init__(self, assignment: Assignment, trained: Iterable[tuple[int, int]]) -> None:
        """Take up a task; `trained` are the (round, chunk) whose updates a restart found on disk."""
        self.assignment = assignment
        self.ended = False
        self.round = 0
        self._state: str = "loading"
        self._reason = ""
        self._num_examples: tuple[tuple[int, int], ...] = ()
        self._trained = set(trained)
        self._todo: deque[Chunk] = deque()
        self._idle = 0

    @property
    def report(self) -> TaskReport:
        """What the node's next `hello` says of the task."""
        return TaskReport.model_validate(
            {
                "task": self.assignment.task,
                "state": self._state,
                "reason": self._reason,
                "round": self.round,
                "num_examples": self._num_examples,
            }
        )

    def begin(self) -> list[Action]:
        """The first actions of a task, also of one that is taken up again."""
        return [Load(), Report()]

    def handle(self, event: Event) -> list[Action]:
        """What `event` asks for. After `End` nothing more comes."""
        if self.ended:
            return []
        match event:
            case Loaded(num_examples):
                return self._loaded(num_examples)
            case WorkersIdle(count):
                self._idle = count
                return self._train()
            case GlobalArrived(number, broadcast):
                return self._global_arrived(number, broadcast)
            case Trained(number, chunk):
                return self._chunk_trained(number, chunk)
            # The server goes on without a chunk of an earlier round, whose files may be gone already.
            case Diverged(number) | Failed(round=int(number)) if self._is_over(number):
                return [ClearUpdates(number)]
            case Diverged(number, client):
                self.round = number
                return self._give_up("diverged", f"client {client}'s parameters are no longer finite")
            case Failed(reason, refused):
                return self._give_up("refused" if refused else "failed", reason)
            case Stopped() if self._state == "closing":
                return []  # it ends by itself as soon as the final model is kept
            case FinalKept() | Stopped():
                self.ended = True
                return [End()]

    def _is_over(self, number: int) -> bool:
        """Whether nobody waits for updates of this round any more."""
        return number < self.round or self._state == "closing"

    def _loaded(self, num_examples: tuple[tuple[int, int], ...]) -> list[Action]:
        if self._state != "loading":  # a further worker, or one that was started anew
            return []
        if len(num_examples) > MAX_RUNS:
            reason = f"the sizes of {self.assignment.num_clients} uneven partitions do not fit a hello: take fewer"
            return self._give_up("failed", reason)
        self._num_examples = num_examples
        self._state = "ready"
        return [SendTestset(), Report()] if self.assignment.send_testset else [Report()]

    def _give_up(self, state: str, reason: str) -> list[Action]:
        """Say why, and wait for the server's `stop`: it, not the node, ends a task."""
        if self._state in {"refused", "failed", "diverged"}:
            return []
        self._state = state
        self._reason = reason[:MAX_TEXT]
        self._todo.clear()
        return [EndWorkers(), Report()]

    def _global_arrived(self, number: int, broadcast: Broadcast) -> list[Action]:
        if number <= self.round or self._state in {"refused", "failed", "diverged"}:
            return []
        if broadcast.final:
            first = self._state != "closing"
            self._state = "closing"
            self._todo.clear()
            return [KeepFinal(number)] if first else []
        self.round = number
        actions: list[Action] = [ClearUpdates(broadcast.used_through), ClearGlobals(number)]
        self._todo.clear()
        for chunk in broadcast.chunks:
            if (number, chunk.id) in self._trained:  # by a daemon that was killed since; sending twice costs nothing
                actions.append(SendUpdates(number, chunk.id))
            else:
                self._todo.append(chunk)
        return actions + self._train()

    def _chunk_trained(self, number: int, chunk: int) -> list[Action]:
        if self._is_over(number):
            return [ClearUpdates(number)]
        self._trained.add((number, chunk))
        return [SendUpdates(number, chunk)]

    def _train(self) -> list[Action]:
        actions: list[Action] = []
        while self._idle and self._todo and self._state == "ready":
            chunk = self._todo.popleft()
            self._idle -= 1
            actions.append(Train(self.round, chunk))
        return actions
