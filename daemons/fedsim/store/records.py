"""The records that the store accepts and returns: frozen, one class for each table.

Times are seconds since the epoch (UTC).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fedsim.settings import TaskSettings

if TYPE_CHECKING:
    from fedsim.learning.metrics import ClassValues, MetricValues


class TaskState(StrEnum):
    """The state of a task. `starting`: claimed by the server. The last three are final."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def finished(self) -> bool:
        """Whether the task can never change again."""
        return self in FINISHED


UNFINISHED = frozenset({TaskState.STARTING, TaskState.RUNNING})
FINISHED = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.STOPPED})
# state -> the states that it can be reached from
LEGAL_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset(),
    TaskState.STARTING: frozenset({TaskState.PENDING}),
    TaskState.RUNNING: frozenset({TaskState.STARTING}),
    TaskState.COMPLETED: frozenset({TaskState.RUNNING}),
    TaskState.FAILED: frozenset({TaskState.STARTING, TaskState.RUNNING}),
    TaskState.STOPPED: frozenset({TaskState.PENDING, TaskState.STARTING, TaskState.RUNNING}),
}


class UserRole(StrEnum):
    """The permissions of a user."""

    USER = "user"
    ADMIN = "admin"


class UserState(StrEnum):
    """Whether a user may log in."""

    WAITING = "waiting"
    ACTIVE = "active"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class User:
    """A user account; `password_hash` is argon2id."""

    id: int
    name: str
    password_hash: str
    role: UserRole
    state: UserState
    language: str
    created_at: float


@dataclass(frozen=True, slots=True)
class LoginSession:
    """A logged-in browser. Only the hash of its id is stored."""

    user: User
    csrf: str
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token of the JSON API. Only its hash is stored; `hint` is its first characters."""

    id: int
    user_id: int
    label: str
    hint: str
    created_at: float
    used_at: float | None


@dataclass(frozen=True, slots=True)
class Task:
    """A submitted training. Users refer to it by its `number`, headers and paths by its `uid`.

    `metrics` are those of the newest round that was tested. `left_out`: the nodes that were online when it was planned
    and take no part, with the reasons; `notes`: remarks on its data and course.
    """

    number: int
    uid: str
    user_id: int
    user_name: str
    state: TaskState
    reason: str
    settings: TaskSettings
    created_at: float
    started_at: float | None
    finished_at: float | None
    stop_requested: bool
    delete_requested: bool
    round: int
    metrics: MetricValues
    phase: str
    waiting_for: tuple[str, ...]
    waiting_until: float | None
    eta_seconds: float | None
    nodes: tuple[str, ...]
    digest: str | None
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a running task: written by the server, shown on pages."""

    round: int
    phase: str
    waiting_for: tuple[str, ...] = ()
    waiting_until: float | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A committed round, a projection of its folder: it can be written again with the same content.

    `metrics` and `class_metrics` (a value for each class) come from the test, and are empty where the round was not
    tested; `train_metrics` come from the clients. `seconds` holds the length of each phase, `missing` the clients that
    did not respond, `digest` the global model's blake3.
    """

    round: int
    digest: str
    num_examples: int
    seconds: dict[str, float]
    bytes_sent: int
    bytes_received: int
    cohort_size: int
    missing: tuple[int, ...]
    finished_at: float
    train_metrics: MetricValues = field(default_factory=dict)
    metrics: MetricValues = field(default_factory=dict)
    class_metrics: ClassValues = field(default_factory=dict)

    @property
    def tested(self) -> bool:
        """Whether the round's model was tested."""
        return bool(self.metrics or self.class_metrics)


@dataclass(frozen=True, slots=True)
class RoundMetrics:
    """The metrics of a round without the rest of its record: the points of the curves."""

    round: int
    train_metrics: MetricValues
    metrics: MetricValues


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved model file. `path` is relative to the checkpoints folder; `removed_why` says why the file was removed."""

    round: int
    path: str
    digest: str
    size: int
    created_at: float
    removed_at: float | None = None
    removed_why: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it last announced itself."""

    name: str
    seen_at: float
    hello: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """An event in the history of a task, a user or the platform."""

    at: float
    kind: str
    text: str
    task: int | None = None
    user: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
