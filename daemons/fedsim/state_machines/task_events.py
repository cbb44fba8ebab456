"""The events of a task on the server, and the actions with which its state machine (`task`) answers them."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.evaluation import EvaluationReport
from fedsim.learning.samplers import Losses
from fedsim.messages import Broadcast, TaskReport
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.suspension import Suspended
from fedsim.state_machines.task_record import NO_TOTALS, CompletePhase, MetricPairs, Restored, Totals, WriteRoster
from fedsim.update import Update

__all__ = ["CompletePhase", "MetricPairs", "Restored", "Totals", "WriteRoster"]  # next to what is defined here

# ---------------------------------------------------------------- events


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
    """A round's model was tested and the result is recorded; `metrics` are those that are one number."""

    round: int
    metrics: MetricPairs = ()


@dataclass(frozen=True)
class NodeTested:
    """A node's report on a round's model is in the spool; it was compared with what the server knows."""

    report: EvaluationReport


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
    | NodeTested
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
class AggregateRound:
    """Have a worker combine the roster's updates into the next model."""

    round: int
    updates: tuple[Update, ...]


@dataclass(frozen=True)
class Commit:
    """Make the round visible with one rename, and project it into the database; `losses`, `totals` are stored with it.

    `missing_share` is the share of the round's examples whose clients were missing; `used`: see `Restored`.
    """

    round: int
    losses: Losses = ()
    totals: Totals = NO_TOTALS
    missing_share: float = 0.0
    used: tuple[tuple[int, int, int], ...] = ()


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
class OrderEvaluation:
    """Send a round's model to a node, which tests it on its own held-out data."""

    node: str
    round: int


@dataclass(frozen=True)
class RecordNodeTests:
    """Durably record what nodes reported of a round, and which did not; remove the reports, cancel what is sent."""

    round: int
    reports: tuple[EvaluationReport, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class DiscardReport:
    """Remove a report that counts no more."""

    node: str
    round: int


@dataclass(frozen=True)
class Save:
    """Have a worker save the round's checkpoint, and record it."""

    round: int


@dataclass(frozen=True)
class KeepBest:
    """Record that the round's model is the best so far: retention does not remove its checkpoint."""

    round: int


@dataclass(frozen=True)
class RemoveCheckpoint:
    """Remove the checkpoint of a round that was saved as the best one, now that a better one is saved."""

    round: int
    better: int


@dataclass(frozen=True)
class ClearModel:
    """Remove the round's folder: nothing needs it any more."""

    round: int


@dataclass(frozen=True)
class SendFinal:
    """Send the final model to the node: that of the round `released`; None: of the last one, `round`."""

    node: str
    round: int
    released: int | None = None


@dataclass(frozen=True)
class RequestAnswer:
    """Ask a node for its answer in an extension phase; `content` is the question, as JSON."""

    node: str
    phase: str
    round: int
    content: str = "{}"


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
    released: int | None = None  # the round whose model is the final one; None: the last
    warning: str = ""  # what everyone who uses the result has to know


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
    | OrderEvaluation
    | RecordNodeTests
    | DiscardReport
    | Save
    | KeepBest
    | RemoveCheckpoint
    | ClearModel
    | SendFinal
    | RequestAnswer
    | CompletePhase
    | RecordEvent
    | Postpone
    | Finish
)
