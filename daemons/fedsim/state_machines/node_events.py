"""The events of a task on a node, and the actions with which its state machine (`node`) answers them."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.messages import Assignment, Broadcast, Chunk
from fedsim.state_machines.suspension import Suspended

# Round, chunk, and client: None where a chunk has one update.
UpdateKey = tuple[int, int, int | None]

# ---------------------------------------------------------------- events


@dataclass(frozen=True)
class NodeTaskStarted:
    """The machine was made and started; `stored` are the (round, chunk, client) of the updates that a restart found."""

    assignment: Assignment
    stored: tuple[UpdateKey, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A worker holds the task's data; `num_examples` as runs of (how many clients, examples of each), in order."""

    num_examples: tuple[tuple[int, int], ...]
    partition: str = ""


@dataclass(frozen=True)
class GlobalArrived:
    """A verified `globalparam` of `round` is in the spool, with what this node trains in that round."""

    round: int
    broadcast: Broadcast


@dataclass(frozen=True)
class RequestArrived:
    """A phase's question to this node is in the spool."""

    phase: str
    round: int


@dataclass(frozen=True)
class Answered:
    """A worker has the answer to a phase's question, as JSON."""

    phase: str
    round: int
    content: str


@dataclass(frozen=True)
class EvaluationOrdered:
    """A verified model of `round` is in the spool, to be tested on this node's held-out examples."""

    round: int


@dataclass(frozen=True)
class ModelTested:
    """A worker has tested a round's model; `content` is the report, as JSON."""

    round: int
    content: str


@dataclass(frozen=True)
class ReportDelivered:
    """The server has the report on a round's model, which was removed; it may ask again if it lost the report."""

    round: int


@dataclass(frozen=True)
class Trained:
    """A chunk's updates are stored, ready to be sent."""

    round: int
    chunk: int


@dataclass(frozen=True)
class TrainingDiverged:
    """A client's parameters are no longer finite; `chunk` is None if the worker has an older version."""

    round: int
    client: int
    chunk: int | None = None


@dataclass(frozen=True)
class Failed:
    """The task cannot continue here; `refused` where the institution's limits forbid it.

    `round` and `chunk` say what could not be trained. Both are None where it was something else that failed, and
    `chunk` alone if the worker has an older version.
    """

    reason: str
    refused: bool = False
    round: int | None = None
    chunk: int | None = None


@dataclass(frozen=True)
class WorkersIdle:
    """This many workers are idle."""

    count: int


@dataclass(frozen=True)
class FinalKept:
    """The final model is stored for predictions."""


@dataclass(frozen=True)
class UsePending:
    """The round's updates, or the test set, were sent some time ago, and nothing shows that they were used."""


@dataclass(frozen=True)
class Stopped:
    """The server ended the task."""


Event = (
    NodeTaskStarted
    | Loaded
    | GlobalArrived
    | RequestArrived
    | Answered
    | EvaluationOrdered
    | ModelTested
    | ReportDelivered
    | Trained
    | TrainingDiverged
    | Failed
    | WorkersIdle
    | FinalKept
    | Suspended
    | UsePending
    | Stopped
)


# ---------------------------------------------------------------- actions


@dataclass(frozen=True)
class LoadData:
    """Start the workers and have them load the task's data."""


@dataclass(frozen=True)
class Report:
    """Report the state of the task to the server at once."""


@dataclass(frozen=True)
class SendTestset:
    """Send the test set: the server asked, and the configuration allows it."""


@dataclass(frozen=True)
class AnswerRequest:
    """Have a worker answer a phase's question."""

    phase: str
    round: int


@dataclass(frozen=True)
class SendAnswer:
    """Send the answer to a phase's question."""

    phase: str
    round: int
    content: str


@dataclass(frozen=True)
class TestModel:
    """Give the model of a round to an idle worker, to be tested."""

    round: int


@dataclass(frozen=True)
class SendReport:
    """Send the report on a round's model."""

    round: int
    content: str


@dataclass(frozen=True)
class TrainChunk:
    """Give the chunk to an idle worker."""

    round: int
    chunk: Chunk


@dataclass(frozen=True)
class SendUpdates:
    """Send the chunk's updates."""

    round: int
    chunk: int


@dataclass(frozen=True)
class ClearUsedUpdates:
    """Remove the updates of rounds up to this one, and further ones as (round, chunk): they were used."""

    through: int
    further: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class ClearGlobals:
    """Remove the global models of rounds before this one, except `further` ones from which clients are training.

    A model of a later round has just arrived, and stays; except with `later`, when the server was set back and that
    model is of its past.
    """

    keep: int
    further: tuple[int, ...] = ()
    later: bool = False


@dataclass(frozen=True)
class KeepFinal:
    """Keep the final model, that of `globalparam` `round`, for predictions on this node."""

    round: int


@dataclass(frozen=True)
class EndWorkers:
    """Nothing is left to compute here: end the workers and free their memory."""


@dataclass(frozen=True)
class End:
    """End the task here: stop the workers and remove its files."""


Action = (
    LoadData
    | Report
    | SendTestset
    | AnswerRequest
    | SendAnswer
    | TestModel
    | SendReport
    | TrainChunk
    | SendUpdates
    | ClearUsedUpdates
    | ClearGlobals
    | KeepFinal
    | EndWorkers
    | End
)
