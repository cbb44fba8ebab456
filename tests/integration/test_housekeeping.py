"""What is removed when it is no longer needed, and that every removal is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from database_support import Place

from fedsim.config import Retention
from fedsim.server.housekeeping import (
    DAY_SECONDS,
    apply_retention,
    limit_states,
    remove_old_states,
    sweep_kept_states,
    sweep_leftovers,
)
from fedsim.server.kept_states import KeptStates
from fedsim.settings import TaskSettings
from fedsim.spool.files import Kind
from fedsim.spool.layout import Spool
from fedsim.store import Store
from fedsim.store.records import Checkpoint, Resumable, Task, TaskState, UserRole, UserState

NOW = 1_800_000_000.0


@dataclass
class Archive:
    """Tasks with checkpoints: rows in a store, files in a folder."""

    store: Store
    folder: Path
    user: int

    def task(self, *, age_days: float, finished: bool = True) -> Task:
        """A task that was saved, and finished so long ago."""
        then = NOW - age_days * DAY_SECONDS
        task = self.store.tasks.create(self.user, TaskSettings(), uuid4().hex, then)
        self.store.tasks.claim_next(then)
        self.store.tasks.move(task.uid, TaskState.RUNNING, now=then)
        path = f"task-{task.number}/round-0020.safetensors"
        (self.folder / path).parent.mkdir(parents=True)
        (self.folder / path).write_bytes(b"model")
        (self.folder / path).with_suffix(".json").write_text("{}")
        self.store.checkpoints.record(task.uid, Checkpoint(20, path, "d" * 64, 5, then))
        if finished:
            self.store.tasks.move(task.uid, TaskState.COMPLETED, now=then)
        return task

    def kept(self) -> set[int]:
        """The tasks whose files are there."""
        return {int(path.parent.name.split("-")[1]) for path in self.folder.glob("*/*.safetensors")}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    store = Place(f"sqlite:///{tmp_path / 'fedsim.db'}", None).open()
    store.migrate()
    user = store.users.create("ada", "-", role=UserRole.USER, state=UserState.ACTIVE, language="en", now=NOW)
    return Archive(store, tmp_path / "checkpoints", user.id)


def test_without_a_rule_everything_stays(archive: Archive) -> None:
    task = archive.task(age_days=10_000)
    apply_retention(archive.folder, archive.store, Retention(), NOW)
    assert archive.kept() == {task.number}
    archive.store.close()


@pytest.mark.parametrize(
    ("rule", "why"),
    [(Retention(keep_days=30), "older than 30 days"), (Retention(keep_tasks=1), "not of the newest 1 tasks")],
)
def test_an_old_checkpoint_goes_and_its_task_says_why(archive: Archive, rule: Retention, why: str) -> None:
    old, new = archive.task(age_days=31), archive.task(age_days=1)
    apply_retention(archive.folder, archive.store, rule, NOW)
    assert archive.kept() == {new.number}
    assert not (archive.folder / f"task-{old.number}").exists(), "description and folder go along"
    (gone,) = archive.store.checkpoints.of_task(old.number)
    assert gone.removed_at == NOW
    assert why in gone.removed_why
    (event,) = archive.store.events.newest(task=old.number)
    assert why in event.text
    assert archive.store.checkpoints.of_task(new.number)[0].removed_at is None
    archive.store.close()


def test_a_running_task_keeps_its_checkpoints_whatever_the_rule(archive: Archive) -> None:
    running = archive.task(age_days=400, finished=False)
    apply_retention(archive.folder, archive.store, Retention(keep_days=1, keep_tasks=1), NOW)
    assert archive.kept() == {running.number}
    archive.store.close()


def test_the_sweep_at_the_start_takes_only_what_belongs_to_no_unfinished_task(archive: Archive, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool").open()
    running, done = archive.task(age_days=1, finished=False), archive.task(age_days=1)
    for kind in (Kind.GLOBALPARAM, Kind.LOCALPARAM, Kind.TESTSET):
        for uid in (running.uid, done.uid, uuid4().hex):
            (spool.folder(kind) / uid).mkdir()
            (spool.folder(kind) / uid / "file.npy").write_bytes(b"x")
    sweep_leftovers(spool, archive.store)
    for kind in (Kind.GLOBALPARAM, Kind.LOCALPARAM, Kind.TESTSET):
        assert [path.name for path in spool.folder(kind).iterdir()] == [running.uid]
    archive.store.close()


def test_the_state_of_a_task_that_could_be_resumed_goes_after_its_time_and_the_task_says_so(
    archive: Archive, tmp_path: Path
) -> None:
    kept = KeptStates(tmp_path)
    tasks = {}
    for age_days in (31, 29):
        task = archive.task(age_days=age_days, finished=False)
        then = NOW - age_days * DAY_SECONDS
        archive.store.tasks.move(task.uid, TaskState.FAILED, now=then, resumable=Resumable(uid=uuid4().hex, round=3))
        tasks[age_days] = task.number
        (tmp_path / "resumable" / f"task-{task.number:06d}").mkdir(parents=True)
    sweep_kept_states(kept, archive.store)
    assert kept.numbers() == [tasks[31], tasks[29]]
    remove_old_states(kept, archive.store, 30, NOW)
    assert kept.numbers() == [tasks[29]]
    old = archive.store.tasks.get(tasks[31])
    assert old is not None
    assert (old.resume_uid, old.resume_problem) == (None, "its state was kept for 30 days")
    assert not archive.store.tasks.request_resume(tasks[31])
    assert [event.kind for event in archive.store.events.newest(task=tasks[31])] == ["retention"]
    assert archive.store.tasks.request_resume(tasks[29])
    remove_old_states(kept, archive.store, 0, NOW)
    assert kept.numbers() == [tasks[29]], "a task that waits to be resumed needs it"
    for number in (tasks[31], 99):
        (tmp_path / "resumable" / f"task-{number:06d}").mkdir()
    sweep_kept_states(kept, archive.store)
    assert kept.numbers() == [tasks[29]]
    archive.store.close()


def test_the_states_of_the_newest_completed_tasks_stay_and_the_others_say_why_not(
    archive: Archive, tmp_path: Path
) -> None:
    kept = KeptStates(tmp_path)
    numbers = []
    for age_days in (3, 2, 1):
        task = archive.task(age_days=age_days, finished=False)
        then = NOW - age_days * DAY_SECONDS
        archive.store.tasks.move(task.uid, TaskState.COMPLETED, now=then, resumable=Resumable(uuid4().hex, round=3))
        numbers.append(task.number)
        (tmp_path / "resumable" / f"task-{task.number:06d}").mkdir(parents=True)
    failed = archive.task(age_days=9, finished=False)
    archive.store.tasks.move(failed.uid, TaskState.FAILED, now=NOW, resumable=Resumable(uuid4().hex, round=3))
    (tmp_path / "resumable" / f"task-{failed.number:06d}").mkdir()
    for _ in range(2):
        limit_states(kept, archive.store, 2)
    assert kept.numbers() == [*numbers[1:], failed.number]
    old = archive.store.tasks.get(numbers[0])
    assert old is not None
    why = "the server keeps the states of the newest 2 completed tasks"
    assert (old.resume_uid, old.resume_problem) == (None, why)
    (event,) = archive.store.events.newest(task=numbers[0])
    assert event.text == f"the task cannot be continued any more: {why}"
    assert not archive.store.tasks.request_continue(numbers[0], 5)
    assert archive.store.tasks.request_continue(numbers[2], 5)
    assert not archive.store.tasks.request_continue(numbers[2], 5), "it waits already"
    assert not archive.store.tasks.request_continue(failed.number, 5)
    limit_states(kept, archive.store, 0)
    assert kept.numbers() == [numbers[2], failed.number], "a task that waits to be continued needs its state"
    archive.store.close()
