"""What can happen to a task on the server, and what is then to be done: the words of the table in `task`."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.messages import Broadcast, TaskReport
from fedsim.update import Update

# ---------------------------------------------------------------- what can happen


@dataclass(frozen=True)
class NodeReported:
    """A node announced itself; `report` is what it says of this task, None if it does not know it."""

    node: str
    report: TaskReport | None


@dataclass(frozen=True)
class InitialModelMade:
    """Round 0's folder is ready to be committed."""


@dataclass(frozen=True)
class TestsetArrived:
    """The test set lies where the evaluation finds it."""


@dataclass(frozen=True)
class UpdateArrived:
    """A verified `localparam` is in the spool."""

    update: Update


@dataclass(frozen=True)
class Aggregated:
    """The worker combined the roster's updates; `finite` is False where the model holds NaN or Inf."""

    round: int
    finite: bool


@dataclass(frozen=True)
class Evaluated:
    """A round's model was tested and the result is recorded."""

    round: int


@dataclass(frozen=True)
class Saved:
    """A round's checkpoint lies in place and is recorded."""

    round: int


@dataclass(frozen=True)
class FinalDelivered:
    """A node has the final model."""

    node: str


@dataclass(frozen=True)
class NodeRefused:
    """A node's receiver refused a file for good: what it never takes cannot be waited for."""

    node: str
    reason: str


@dataclass(frozen=True)
class TimePassed:
    """The time that `TaskMachine.wake_at` asked for has come, or any other."""


@dataclass(frozen=True)
class StopRequested:
    """Somebody wants the task to end."""

    reason: str


@dataclass(frozen=True)
class Broken:
    """Something that the task cannot do without failed for good on this host."""

    reason: str


Event = (
    NodeReported
    | InitialModelMade
    | TestsetArrived
    | UpdateArrived
    | Aggregated
    | Evaluated
    | Saved
    | FinalDelivered
    | NodeRefused
    | TimePassed
    | StopRequested
    | Broken
)


# ---------------------------------------------------------------- what is to be done


@dataclass(frozen=True)
class Assign:
    """Send `initparam` to the node."""

    node: str


@dataclass(frozen=True)
class MakeInitialModel:
    """Let a worker make round 0's model from the task's seed."""


@dataclass(frozen=True)
class RecordCounts:
    """Durably write how many examples each client has: from here on that is fixed."""

    counts: tuple[int, ...]


@dataclass(frozen=True)
class SendGlobal:
    """Send round `round - 1`'s model to the node as `globalparam` of `round`, with what it trains."""

    node: str
    round: int
    broadcast: Broadcast


@dataclass(frozen=True)
class WriteRoster:
    """Durably write which updates count in `round`, in canonical order, and who is missing, before anything is summed.

    How many examples are behind an update is what the nodes reported before round 1, not what came with the update.
    """

    round: int
    updates: tuple[Update, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Aggregate:
    """Let a worker combine the roster's updates into the next model."""

    round: int
    updates: tuple[Update, ...]


@dataclass(frozen=True)
class Commit:
    """Make the round visible with one rename, and project it into the database."""

    round: int


@dataclass(frozen=True)
class ClearUpdates:
    """Remove the updates of rounds up to this one."""

    through: int


@dataclass(frozen=True)
class Discard:
    """Remove an update that nobody waits for: late, double or not asked for."""

    update: Update


@dataclass(frozen=True)
class Evaluate:
    """Let a worker test the round's model, and record the result."""

    round: int


@dataclass(frozen=True)
class Save:
    """Let a worker save the round's checkpoint, and record it."""

    round: int


@dataclass(frozen=True)
class ClearModel:
    """The round's folder is used up."""

    round: int


@dataclass(frozen=True)
class SendFinal:
    """Send the final model to the node."""

    node: str
    round: int


@dataclass(frozen=True)
class Note:
    """Tell people something about the task; it goes on."""

    kind: str
    text: str


@dataclass(frozen=True)
class Finish:
    """End: move the row, stop the workers, tell the nodes, clear what is used up."""

    outcome: str  # completed, failed or stopped
    reason: str


Action = (
    Assign
    | MakeInitialModel
    | RecordCounts
    | SendGlobal
    | WriteRoster
    | Aggregate
    | Commit
    | ClearUpdates
    | Discard
    | Evaluate
    | Save
    | ClearModel
    | SendFinal
    | Note
    | Finish
)
