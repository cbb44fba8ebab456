"""The questions that server and web ask of the database; one class answers them, on SQLite and on MySQL.

Rows go in and come out as frozen records. Times are seconds since the epoch (UTC). A task's row owns its state: every
state change is one conditional UPDATE whose row count is checked, so an illegal move is refused by the database itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from fedsim.settings import TaskSettings


class TaskState(StrEnum):
    """Where a task stands. `starting` is claimed by the server; the last three are final."""

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


FINISHED = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.STOPPED})
# state -> the states that it may come from
LEGAL_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset(),
    TaskState.STARTING: frozenset({TaskState.PENDING}),
    TaskState.RUNNING: frozenset({TaskState.STARTING}),
    TaskState.COMPLETED: frozenset({TaskState.RUNNING}),
    TaskState.FAILED: frozenset({TaskState.STARTING, TaskState.RUNNING}),
    TaskState.STOPPED: frozenset({TaskState.PENDING, TaskState.STARTING, TaskState.RUNNING}),
}


class Role(StrEnum):
    """What a user may do."""

    USER = "user"
    ADMIN = "admin"


class UserState(StrEnum):
    """Whether a user may log in."""

    WAITING = "waiting"
    ACTIVE = "active"
    DISABLED = "disabled"


@dataclass(frozen=True)
class User:
    """A person with an account; `password_hash` is argon2id's."""

    id: int
    name: str
    password_hash: str
    role: Role
    state: UserState
    language: str
    created_at: float


@dataclass(frozen=True)
class Session:
    """A logged-in browser. Only the hash of its id is stored."""

    user: User
    csrf: str
    created_at: float
    expires_at: float


@dataclass(frozen=True)
class Token:
    """A bearer token of the JSON API. Only its hash is stored; `hint` is its first characters."""

    id: int
    user_id: int
    label: str
    hint: str
    created_at: float
    used_at: float | None


@dataclass(frozen=True)
class Task:
    """One submitted training. `number` is what people say, `uid` what stands in headers and paths."""

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
    loss: float | None
    accuracy: float | None
    phase: str
    waiting_for: tuple[str, ...]
    waiting_until: float | None
    eta_seconds: float | None
    nodes: tuple[str, ...]
    digest: str | None


@dataclass(frozen=True)
class Progress:
    """What a running task is doing now; the server writes it, pages show it."""

    round: int
    phase: str
    waiting_for: tuple[str, ...] = ()
    waiting_until: float | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True)
class RoundRecord:
    """A committed round, a projection of its folder: written again and again with the same content.

    `loss`, `accuracy`, `recall` (per class) and `auc` are None where the round was not evaluated. `seconds` holds the
    length of each phase, `missing` the clients that did not answer, `digest` the global model's blake3.
    """

    round: int
    digest: str
    num_examples: int
    train_loss: float | None
    seconds: dict[str, float]
    bytes_sent: int
    bytes_received: int
    cohort_size: int
    missing: tuple[int, ...]
    finished_at: float
    loss: float | None = None
    accuracy: float | None = None
    recall: tuple[float | None, ...] | None = None
    auc: float | None = None


@dataclass(frozen=True)
class Measured:
    """What curves are drawn from: a round's metrics without the rest of its record."""

    round: int
    train_loss: float | None
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Checkpoint:
    """A saved model file, `path` relative to the checkpoints folder; `removed_at` and why, once it is gone."""

    round: int
    path: str
    digest: str
    size: int
    created_at: float
    removed_at: float | None = None
    removed_why: str = ""


@dataclass(frozen=True)
class Node:
    """A node as it last announced itself."""

    name: str
    seen_at: float
    hello: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """Something worth telling about a task, a user or the platform."""

    at: float
    kind: str
    text: str
    task: int | None = None
    user: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


class Store(Protocol):
    """Every question that is asked of the database. Methods raise `Unavailable` when it does not answer."""

    # -- the database itself
    def check(self) -> None:
        """Connect and compare the schema's version with the code's; `Unavailable` says what to do."""

    def migrate(self) -> None:
        """Bring the schema to the code's version (Alembic); daemons may call it at the same time."""

    def close(self) -> None:
        """Let go of every connection."""

    # -- users
    def create_user(
        self, name: str, password_hash: str, *, role: Role, state: UserState, language: str, now: float
    ) -> User:
        """Raises `BadInput` if the name (compared without case) is taken, empty or longer than 64 characters."""

    def user(self, user_id: int) -> User | None:
        """The user with this id."""

    def user_by_name(self, name: str) -> User | None:
        """Compared without case."""

    def users(self) -> list[User]:
        """By name."""

    def set_user_state(self, user_id: int, state: UserState) -> None:
        """Whoever is not active loses every session and token, for good."""

    def set_user_role(self, user_id: int, role: Role) -> None:
        """What the user may do from now on."""

    def set_password_hash(self, user_id: int, password_hash: str) -> None:
        """A new password; also ends the user's sessions and tokens."""

    def renew_password_hash(self, user_id: int, old_hash: str, new_hash: str) -> None:
        """The same password under another hash; nothing ends. Does nothing if `old_hash` is no longer the user's."""

    def set_language(self, user_id: int, language: str) -> None:
        """The language in which the user reads pages."""

    # -- sessions, tokens, throttle; hashes are of 32 bytes, hex
    def create_session(self, id_hash: str, user: User, csrf: str, *, now: float, expires_at: float) -> bool:
        """A browser has logged in. Expired sessions, of any user, are removed on the way.

        False, and nothing is made, if `user` has another password by now, or is not active.
        """

    def session(self, id_hash: str, now: float) -> Session | None:
        """None if unknown, expired, or its user is not active."""

    def end_session(self, id_hash: str) -> None:
        """The browser has logged out."""

    def create_token(self, user: User, label: str, token_hash: str, hint: str, now: float) -> Token | None:
        """A new bearer token; None, as with `create_session`, if the user is not as they were."""

    def tokens(self, user_id: int) -> list[Token]:
        """The user's tokens, oldest first."""

    def delete_token(self, user_id: int, token_id: int) -> bool:
        """Whether this user had such a token; it is gone now."""

    def user_by_token(self, token_hash: str, now: float) -> User | None:
        """The active owner; notes the time of use, to the minute."""

    def record_attempt(self, key: str, *, now: float, until: float) -> None:
        """Something was tried under this key (a name, an address); only a hash of the key is kept, until `until`."""

    def attempts(self, key: str, now: float) -> int:
        """How many attempts under this key still count."""

    def clear_attempts(self, key: str) -> None:
        """Those under this key count no more."""

    # -- tasks
    def create_task(
        self, user_id: int, settings: TaskSettings, uid: str, now: float, *, submission: str | None = None
    ) -> Task:
        """A new pending task; if this user has made one with this `submission` (64 characters), that one.

        Raises `BadInput` if the user is unknown or the uid taken.
        """

    def task_by_submission(self, user_id: int, submission: str) -> Task | None:
        """The task that this user made with this submission."""

    def task(self, number: int) -> Task | None:
        """The task that people know by this number."""

    def task_by_uid(self, uid: str) -> Task | None:
        """The task that headers and paths know by this uid."""

    def tasks(self, user_id: int | None = None, *, limit: int = 50, before: int | None = None) -> list[Task]:
        """Newest first; of one user or all; `before` a task number, for pages."""

    def unfinished_tasks(self) -> list[Task]:
        """Starting and running ones, oldest first: what a restarted server takes up again."""

    def claim_next_task(self, now: float) -> Task | None:
        """Move the oldest pending task to starting; None if there is none. Two servers never claim the same."""

    def move_task(self, uid: str, state: TaskState, *, reason: str = "", now: float, digest: str | None = None) -> bool:
        """One conditional UPDATE along LEGAL_MOVES; whether it happened."""

    def request_stop(self, number: int, now: float) -> bool:
        """Pending: stopped at once. Starting, running: noted for the server. False if already finished."""

    def request_delete(self, number: int) -> bool:
        """Only a finished task; the server then removes its files and its rows."""

    def tasks_to_delete(self) -> list[Task]:
        """Finished tasks that somebody wants gone, oldest first."""

    def delete_task(self, number: int) -> None:
        """The row and everything that belongs to it. Raises `BadInput` if the task is not finished."""

    def set_progress(self, uid: str, progress: Progress) -> None:
        """What a starting or running task does now; at any other it changes nothing."""

    def set_nodes(self, uid: str, nodes: tuple[str, ...]) -> None:
        """Which nodes take part."""

    def queue_position(self, number: int) -> int | None:
        """1 for the next pending task; None if it is not pending."""

    # -- rounds, checkpoints, nodes, events
    def record_round(self, uid: str, record: RoundRecord) -> None:
        """Insert or overwrite; metrics that are already there stay where `record` has none.

        Also sets the task's round and, when evaluated, its loss and accuracy, if this is the newest such round. NaN
        and infinities are kept as None. Raises `BadInput` if there is no such task.
        """

    def rounds(
        self,
        number: int,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[RoundRecord]:
        """Round 0 (the evaluation of the initial model) first: all, or those after and before a round.

        `limit` takes the first so many of them, with `newest` the last so many.
        """

    def count_rounds(self, number: int) -> int:
        """How many rounds are recorded."""

    def measured(self, number: int, among: Collection[int]) -> list[Measured]:
        """What was measured in those of the rounds `among` that are recorded, in their order."""

    def record_checkpoint(self, uid: str, checkpoint: Checkpoint) -> None:
        """Insert or overwrite. Raises `BadInput` if there is no such task."""

    def checkpoints(
        self,
        number: int,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Checkpoint]:
        """In order of their rounds, also those whose file is gone; which of them, as in `rounds`."""

    def expired_checkpoints(
        self, *, finished_before: float | None, keep_tasks: int | None
    ) -> list[tuple[Task, Checkpoint]]:
        """Of finished tasks, what the retention rule lets go, oldest task first.

        Those of tasks that finished before a time, and those beyond the `keep_tasks` newest that have a checkpoint.
        """

    def mark_checkpoint_removed(self, number: int, round_number: int, *, why: str, now: float) -> None:
        """The file is gone, and why; what was said first stays."""

    def record_node(self, node: Node) -> None:
        """Insert or overwrite."""

    def keep_nodes(self, names: Collection[str]) -> None:
        """Forget every node that is none of these."""

    def nodes(self) -> list[Node]:
        """By name."""

    def add_event(self, event: Event) -> None:
        """Keep the event; its task may be gone already."""

    def events(self, *, task: int | None = None, limit: int = 200) -> list[Event]:
        """Newest first."""
