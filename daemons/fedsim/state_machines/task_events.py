"""The events of a task on the server, and the actions with which its state machine (`task`) answers them."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.learning.samplers import Losses
from fedsim.messages import Broadcast, TaskReport
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.suspension import Suspended
from fedsim.update import Update

# ---------------------------------------------------------------- events


@dataclass(frozen=True)
class Restored:
    """What was stored of a task when it was resumed; empty for a new one.

    Attributes:
        committed: the newest committed round; -1: none.
        counts: examples of each client, once they are fixed.
        roster: of the round after the committed one, if it was written.
        kept: the committed rounds whose folders are still there.
        evaluated: those of them that are evaluated, as far as that is due.
        saved: those of them that are saved, as far as that is due.
        testset_parts: the files of the test set that have arrived.
        completed_phases: the extension phases that are complete, with their answers.
        waited: for how long the round after the committed one was open, in seconds, while the server ran.
        absent: (node, why) of the nodes that take no part for now; only a snapshot knows them.
        losses: that clients had reported up to the committed round, where the sampler needs them.
    """

    committed: int = -1
    counts: tuple[int, ...] | None = None
    roster: WriteRoster | None = None
    kept: frozenset[int] = frozenset()
    evaluated: frozenset[int] = frozenset()
    saved: frozenset[int] = frozenset()
    testset_parts: frozenset[str] = frozenset()
    completed_phases: tuple[CompletePhase, ...] = ()
    waited: float = 0.0
    absent: tuple[tuple[str, str], ...] = ()
    losses: Losses = ()


@dataclass(frozen=True)
class TaskStarted:
    """The machine was made and started: the first event of a log, and again after each restart of the server."""

    plan: Plan
    restored: Restored
    own_testset: bool


@dataclass(frozen=True)
class NodeReported:
    """A node announced itself; `report` is its report on this task, None if it does not know it."""

    node: str
    report: TaskReport | None


@dataclass(frozen=True)
class InitialModelMade:
    """Round 0's folder is ready to be committed."""


@dataclass(frozen=True)
class TestsetPartArrived:
    """A verified file of the test set is in the spool: its "data" or its "label"."""

    node: str
    part: str


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
    """A round's checkpoint is stored and recorded."""

    round: int


@dataclass(frozen=True)
class FinalDelivered:
    """A node has the final model."""

    node: str


@dataclass(frozen=True)
class NodeRefused:
    """A node's receiver refused a file for good: it will never receive that file."""

    node: str
    reason: str


@dataclass(frozen=True)
class PhaseAnswered:
    """A node answered the request of an extension phase."""

    node: str
    phase: str
    round: int
    content: str = ""


@dataclass(frozen=True)
class TimePassed:
    """The time that `TaskMachine.wake_at` asked for has come, or some other time."""


@dataclass(frozen=True)
class StopRequested:
    """A user or the server's administrator wants the task to end."""

    reason: str


@dataclass(frozen=True)
class Broken:
    """Something that the task needs failed for good on this host."""

    reason: str


Event = (
    TaskStarted
    | NodeReported
    | InitialModelMade
    | TestsetPartArrived
    | PhaseAnswered
    | UpdateArrived
    | Aggregated
    | Evaluated
    | Saved
    | FinalDelivered
    | NodeRefused
    | TimePassed
    | Suspended
    | StopRequested
    | Broken
)


# ---------------------------------------------------------------- actions


@dataclass(frozen=True)
class Assign:
    """Send `initparam` to the node."""

    node: str


@dataclass(frozen=True)
class CreateInitialModel:
    """Have a worker create round 0's model, from the task's seed or from the file that it starts from."""


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

    `cohort` is written as well where it does not follow from the plan alone.

    How many examples are behind an update is what the nodes reported before round 1, not what came with the update.
    """

    round: int
    updates: tuple[Update, ...]
    missing: tuple[int, ...]
    cohort: tuple[int, ...] = ()


@dataclass(frozen=True)
class AggregateRound:
    """Have a worker combine the roster's updates into the next model."""

    round: int
    updates: tuple[Update, ...]


@dataclass(frozen=True)
class Commit:
    """Make the round visible with one rename, and project it into the database; `losses` are stored with it."""

    round: int
    losses: Losses = ()


@dataclass(frozen=True)
class ClearUpdates:
    """Remove the updates of rounds up to this one."""

    through: int


@dataclass(frozen=True)
class DiscardUpdate:
    """Remove an update that is not expected: late, duplicate or never requested."""

    update: Update


@dataclass(frozen=True)
class EvaluateRound:
    """Have a worker test the round's model, and record the result."""

    round: int


@dataclass(frozen=True)
class Save:
    """Have a worker save the round's checkpoint, and record it."""

    round: int


@dataclass(frozen=True)
class ClearModel:
    """Remove the round's folder: nothing needs it any more."""

    round: int


@dataclass(frozen=True)
class SendFinal:
    """Send the final model to the node."""

    node: str
    round: int


@dataclass(frozen=True)
class RequestAnswer:
    """Ask a node for its answer in an extension phase; `content` is the question, as JSON."""

    node: str
    phase: str
    round: int
    content: str = "{}"


@dataclass(frozen=True)
class CompletePhase:
    """Durably record that an extension phase is complete, with its answers as (node, JSON); it is not repeated."""

    phase: str
    round: int
    answers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RecordEvent:
    """Record a remark for users at the task; it continues."""

    kind: str
    text: str


@dataclass(frozen=True)
class Postpone:
    """End this run of the task, which waits without a place until these nodes do what they have missed (node, what)."""

    nodes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Finish:
    """End the task: change its row, stop the workers, notify the nodes, clear what is not needed any more."""

    outcome: str  # completed, failed or stopped
    reason: str
    stopped_nodes: tuple[str, ...] = ()  # are sent a stop
    awaiting_final: tuple[str, ...] = ()  # are sent the final model after the end


Action = (
    Assign
    | CreateInitialModel
    | RecordCounts
    | SendGlobal
    | WriteRoster
    | AggregateRound
    | Commit
    | ClearUpdates
    | DiscardUpdate
    | EvaluateRound
    | Save
    | ClearModel
    | SendFinal
    | RequestAnswer
    | CompletePhase
    | RecordEvent
    | Postpone
    | Finish
)
