"""Users, tasks, rounds and checkpoints for tests of the store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import func, select

from fedsim.settings import TaskSettings
from fedsim.store.records import (
    Checkpoint,
    RoundRecord,
    Task,
    TaskState,
    User,
    UserRole,
    UserState,
)

if TYPE_CHECKING:
    from sqlalchemy import Table

    from fedsim.store import Store

PENDING, STARTING, RUNNING = TaskState.PENDING, TaskState.STARTING, TaskState.RUNNING
COMPLETED, FAILED, STOPPED = TaskState.COMPLETED, TaskState.FAILED, TaskState.STOPPED
# The legal way to each state.
WAY = {
    PENDING: (),
    STARTING: (STARTING,),
    RUNNING: (STARTING, RUNNING),
    COMPLETED: (STARTING, RUNNING, COMPLETED),
    FAILED: (STARTING, FAILED),
    STOPPED: (STOPPED,),
}
NOW = 1_700_000_000.125
DIGEST = "d" * 64


def new_user(store: Store, name: str = "Ada", **changes: Any) -> User:
    given: dict[str, Any] = {"role": UserRole.USER, "state": UserState.ACTIVE, "language": "en", "now": NOW}
    return store.users.create(name, "$argon2id$…", **(given | changes))


def new_task(store: Store, user: User | None = None, state: TaskState = PENDING, **settings: Any) -> Task:
    owner = user or store.users.by_name("Ada") or new_user(store)
    task = store.tasks.create(owner.id, TaskSettings(**settings), uuid4().hex, NOW)
    for step in WAY[state]:
        assert store.tasks.move(task.uid, step, now=NOW + 1)
    return again(store, task)


def again(store: Store, task: Task) -> Task:
    found = store.tasks.get(task.number)
    assert found is not None
    return found


def count(store: Store, table: Table) -> int:
    with store.database.reading() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def new_round(number: int, **changes: Any) -> RoundRecord:
    record = RoundRecord(
        round=number,
        digest=DIGEST,
        num_examples=6_000_000_000,
        seconds={"train": 1.5},
        bytes_sent=2**40,
        bytes_received=2**41,
        cohort_size=10,
        missing=(3, 7),
        finished_at=NOW + number,
        train_metrics={"train_loss": 0.5},
    )
    return replace(record, **changes)


def new_checkpoint(number: int) -> Checkpoint:
    return Checkpoint(
        round=number, path=f"task-1/round-{number:04d}.safetensors", digest=DIGEST, size=2**33, created_at=NOW
    )
