"""The records that the store accepts and returns: frozen, one class for each table.

Times are seconds since the epoch (UTC).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fedsim.initial import InitialModel
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
        """Whether the task is over; one that failed or was stopped can be resumed."""
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


def done_rounds(settings: TaskSettings, newest: int) -> int:
    """The rounds of a completed task whose `newest` is recorded: one that ended early has fewer than were set."""
    return min(newest or settings.num_rounds, settings.num_rounds)


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
    """A user account; `password_hash` is argon2id.

    `must_change_password`: someone else chose it. `totp_secret`: of the second factor, base32; None without one.
    `openid_key`: the digest of who the user is at an OpenID Connect provider; such a user has no password.
    """

    id: int
    name: str
    password_hash: str
    role: UserRole
    state: UserState
    language: str
    created_at: float
    must_change_password: bool = False
    totp_secret: str | None = None
    openid_key: str | None = None


@dataclass(frozen=True, slots=True)
class LoginSession:
    """A logged-in browser. Only the hash of its id is stored."""

    user: User
    csrf: str
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """A session in the list of its user: when and from where it was begun, and when it was last used."""

    id_hash: str
    created_at: float
    used_at: float | None
    address: str | None
    browser: str | None


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token of the JSON API. Only its hash is stored; `hint` is its first characters."""

    id: int
    user_id: int
    label: str
    hint: str
    created_at: float
    used_at: float | None
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Task:
    """A submitted training. Users refer to it by its `number`, headers and paths by its `uid`.

    `metrics` are those of the newest round that was tested. `left_out`: the nodes that were online when it was planned
    and take no part, with the reasons; `notes`: remarks on its data and course. `participation`, by node: its clients
    (`first_client`, `num_clients`), the rounds that chose some of them (`rounds`) and those that went on without some
    of these (`rounds_missing`), the updates that were expected (`expected`) and those that did not count (`missing`).
    `resume_*`: see `Resumable`. `repeats`: the number of the task that is run again, whose plan is taken if it fits.
    `initial`: what its first model comes from; None: the model's own initialisation. `best`: the `round` that is the
    best so far by the `metric` that the task keeps, with its `value`. `warning`: what users of its result have to know.
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
    participation: dict[str, dict[str, int]] = field(default_factory=dict)
    resume_uid: str | None = None
    resume_round: int | None = None
    resume_problem: str | None = None
    repeats: int | None = None
    initial: InitialModel | None = None
    best: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None

    @property
    def lost_clients(self) -> bool:
        """Whether rounds went on without clients: the result is comparable only with a run that lacks the same ones."""
        return any(node["missing"] for node in self.participation.values())


@dataclass(frozen=True, slots=True)
class Resumable:
    """Whether the server keeps the state of a task that ended: the uid with which it is resumed, after which round.

    `problem` says why there is none.
    """

    uid: str | None = None
    round: int | None = None
    problem: str | None = None


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
    did not respond or were left out, `missing_share` the share of the round's examples that those have who did not
    respond, `digest` the global model's blake3. `screening` is what the task's screening found
    of each update, see `learning.screenings.Screened`. `node_metrics`: the tests on the nodes' own data, with
    `nodes`: by node its `num_examples`, why they are `withheld`, and its `metrics` as (value, low, high); `missing`:
    nodes that did not report; `mean`: like the metrics of a node; `worst`: (node, value) by metric. `buffered`: what an
    asynchronous round summed, in this order, as (round in which the update began, client). `contributions`: loss, norm
    of the update and drift by node and by client, see `learning.contributions.Contributions`.
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
    screening: tuple[dict[str, Any], ...] = ()
    missing_share: float | None = None
    node_metrics: dict[str, Any] = field(default_factory=dict)
    buffered: tuple[tuple[int, int], ...] = ()
    contributions: dict[str, Any] = field(default_factory=dict)

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
class PinnedDataSet:
    """The digest (blake3, hexadecimal) that a data set of this name has on every node that holds a copy."""

    name: str
    digest: str
    pinned_at: float


@dataclass(frozen=True, slots=True)
class Event:
    """An event in the history of a task, a user or the platform."""

    at: float
    kind: str
    text: str
    task: int | None = None
    user: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
