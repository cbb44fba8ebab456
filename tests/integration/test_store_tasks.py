"""Tasks in the store, on SQLite and on MariaDB."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from store_support import (
    COMPLETED,
    DIGEST,
    FAILED,
    NOW,
    PENDING,
    RUNNING,
    STARTING,
    STOPPED,
    again,
    count,
    new_checkpoint,
    new_round,
    new_task,
    new_user,
)

from fedsim.errors import BadInput
from fedsim.settings import TaskSettings
from fedsim.store.records import (
    FINISHED,
    LEGAL_MOVES,
    Event,
    Progress,
    TaskState,
)
from fedsim.store.schema import checkpoints, rounds, tasks
from fedsim.store.tasks import TooManyTasks

if TYPE_CHECKING:
    from fedsim.store import Store


class TestTasks:
    def test_a_submission_that_comes_again_is_the_same_task_for_its_user_only(self, store: Store) -> None:
        user, other = new_user(store), new_user(store, "Bob")
        first = store.tasks.create(user.id, TaskSettings(), uuid4().hex, NOW, submission="a" * 64)
        again = store.tasks.create(user.id, TaskSettings(), uuid4().hex, NOW + 1, submission="a" * 64)
        assert again == first == store.tasks.by_submission(user.id, "a" * 64)
        theirs = store.tasks.create(other.id, TaskSettings(), uuid4().hex, NOW, submission="a" * 64)
        assert theirs.number != first.number
        assert store.tasks.by_submission(other.id, "b" * 64) is None

    def test_at_the_same_moment_a_user_gets_no_more_tasks_than_allowed(self, store: Store) -> None:
        user, other = new_user(store), new_user(store, "Bob")

        def submit(_: int) -> bool:
            try:
                store.tasks.create(user.id, TaskSettings(), uuid4().hex, NOW, most_unfinished=3)
            except TooManyTasks:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(submit, range(16))) == 3
        assert store.tasks.unfinished_of(user.id) == 3
        store.tasks.create(other.id, TaskSettings(), uuid4().hex, NOW, most_unfinished=1)

    def test_tasks_without_a_submission_are_all_different(self, store: Store) -> None:
        user = new_user(store)
        made = [store.tasks.create(user.id, TaskSettings(), uuid4().hex, NOW) for _ in range(2)]
        assert made[0].number != made[1].number

    def test_a_submission_that_comes_many_times_at_once_is_one_task(self, store: Store) -> None:
        user = new_user(store)
        with ThreadPoolExecutor(8) as pool:
            made = list(
                pool.map(
                    lambda _: store.tasks.create(user.id, TaskSettings(), uuid4().hex, NOW, submission="a" * 64),
                    range(16),
                )
            )
        assert len({task.number for task in made}) == 1
        assert len(store.tasks.newest()) == 1

    def test_a_new_task_waits(self, store: Store) -> None:
        user = new_user(store)
        settings = TaskSettings(
            title="第一次 🚀 \\ ' \"", seed=2**63 - 1, local_learning_rate=0.1 + 0.2, partition_options={"alpha": 1e-3}
        )
        uid = uuid4().hex
        task = store.tasks.create(user.id, settings, uid, NOW)
        assert task.settings == settings
        assert (task.uid, task.user_id, task.user_name, task.created_at) == (uid, user.id, "Ada", NOW)
        assert (task.state, task.reason, task.round, task.nodes, task.digest) == (PENDING, "", 0, (), None)
        assert task.stop_requested is False
        assert task.delete_requested is False
        assert store.tasks.get(task.number) == store.tasks.by_uid(uid) == task

    def test_unknown_tasks_are_none(self, store: Store) -> None:
        task = new_task(store)
        assert store.tasks.get(task.number + 1) is None
        assert store.tasks.by_uid("0" * 32) is None
        assert store.tasks.by_uid(task.uid.upper()) is None or task.uid.isdigit()

    def test_a_task_needs_a_user_and_a_uid_of_its_own(self, store: Store) -> None:
        task = new_task(store)
        with pytest.raises(BadInput, match="unknown, or the uid exists"):
            store.tasks.create(task.user_id, TaskSettings(), task.uid, NOW)
        with pytest.raises(BadInput, match="unknown, or the uid exists"):
            store.tasks.create(task.user_id + 1, TaskSettings(), uuid4().hex, NOW)

    def test_lists_are_newest_first_in_pages_of_one_user_or_all(self, store: Store) -> None:
        ada, bob = new_user(store), new_user(store, "Bob")
        made = [new_task(store, owner).number for owner in (ada, bob, ada, bob, ada)]
        assert [task.number for task in store.tasks.newest()] == made[::-1]
        assert [task.number for task in store.tasks.newest(ada.id)] == [made[4], made[2], made[0]]
        assert [task.number for task in store.tasks.newest(ada.id, limit=1, before=made[4])] == [made[2]]
        assert {task.user_name for task in store.tasks.newest(bob.id)} == {"Bob"}

    def test_a_restarted_server_finds_its_unfinished_tasks(self, store: Store) -> None:
        made = {state: new_task(store, state=state) for state in TaskState}
        assert [task.number for task in store.tasks.unfinished()] == [made[STARTING].number, made[RUNNING].number]

    def test_an_old_row_gets_the_defaults_of_newer_fields_and_loses_older_ones(self, store: Store) -> None:
        task = new_task(store, title="old", num_rounds=3)
        old = {"title": "old", "num_rounds": 3, "model": "no longer installed", "gone_since": 1}
        with store.database.writing() as connection:
            connection.execute(text("UPDATE tasks SET settings = :old"), {"old": json.dumps(old)})
        settings = again(store, task).settings
        assert settings == TaskSettings(title="old", num_rounds=3).model_copy(update={"model": "no longer installed"})
        assert settings.cohort_size == 10

    def test_progress_shows_while_a_task_runs_and_not_after(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        progress = Progress(4, "train", waiting_for=("bank-a", "bank-b"), waiting_until=NOW + 60, eta_seconds=12.5)
        store.tasks.set_progress(task.uid, progress)
        store.tasks.set_nodes(task.uid, ("bank-a", "bank-b"))
        seen = again(store, task)
        shown = Progress(seen.round, seen.phase, seen.waiting_for, seen.waiting_until, seen.eta_seconds)
        assert shown == progress
        assert seen.nodes == ("bank-a", "bank-b")
        assert store.tasks.move(task.uid, FAILED, reason="bank-a left", now=NOW + 9)
        store.tasks.set_progress(task.uid, progress)
        done = again(store, task)
        assert (done.round, done.phase, done.waiting_for, done.waiting_until, done.eta_seconds) == (
            4,
            "",
            (),
            None,
            None,
        )

    def test_of_the_tasks_that_a_node_names_those_are_answered_that_it_was_given(self, store: Store) -> None:
        given, others = new_task(store), new_task(store)
        store.tasks.set_nodes(given.uid, ("a", "b"))
        store.tasks.set_nodes(others.uid, ("b",))
        invented = [uuid4().hex for _ in range(1000)]
        assert store.tasks.given_to("a", [*invented, given.uid, others.uid]) == [given.uid]
        assert store.tasks.given_to("a", []) == []

    def test_ten_thousand_nodes_can_be_waited_for(self, store: Store) -> None:
        task = new_task(store, state=STARTING)
        names = tuple(f"node-{place:060d}" for place in range(10_000))
        store.tasks.set_progress(task.uid, Progress(0, "gather", waiting_for=names))
        assert again(store, task).waiting_for == names


class TestMoves:
    @pytest.mark.parametrize("target", TaskState)
    @pytest.mark.parametrize("origin", TaskState)
    def test_a_task_moves_where_it_legally_can_and_nowhere_else(
        self, store: Store, origin: TaskState, target: TaskState
    ) -> None:
        task = new_task(store, state=origin)
        other = new_task(store, state=origin)
        moved = store.tasks.move(task.uid, target, reason="because", now=NOW + 7, digest=DIGEST)
        after = again(store, task)
        if origin in LEGAL_MOVES[target]:
            assert moved
            assert (after.state, after.reason, after.digest) == (target, "because", DIGEST)
            assert after.finished_at == (NOW + 7 if target in FINISHED else None)
        else:
            assert not moved
            assert after == task
        assert again(store, other) == other

    def test_times_are_those_of_start_and_end(self, store: Store) -> None:
        task = new_task(store)
        for later, state in enumerate((STARTING, RUNNING, COMPLETED), start=1):
            assert store.tasks.move(task.uid, state, now=NOW + later)
        done = again(store, task)
        assert (done.created_at, done.started_at, done.finished_at) == (NOW, NOW + 1, NOW + 3)

    def test_a_digest_stays_when_none_is_given(self, store: Store) -> None:
        task = new_task(store)
        assert store.tasks.move(task.uid, STARTING, now=NOW, digest=DIGEST)
        assert store.tasks.move(task.uid, RUNNING, now=NOW)
        assert again(store, task).digest == DIGEST

    def test_an_unknown_task_does_not_move(self, store: Store) -> None:
        assert not store.tasks.move("0" * 32, STOPPED, now=NOW)

    def test_tasks_are_claimed_oldest_first(self, store: Store) -> None:
        first, stopped, second = new_task(store), new_task(store, state=STOPPED), new_task(store)
        claimed = store.tasks.claim_next(NOW + 5)
        assert claimed == replace(first, state=STARTING, started_at=NOW + 5)
        assert [task.number for task in (store.tasks.claim_next(NOW),) if task] == [second.number]
        assert store.tasks.claim_next(NOW) is None
        assert again(store, stopped) == stopped

    def test_users_take_turns_however_many_tasks_one_of_them_has(self, store: Store) -> None:
        ada, lin, eve = (new_user(store, name) for name in ("Ada", "Lin", "Eve"))
        many = [new_task(store, ada).number for _ in range(100)]
        of_lin = [new_task(store, lin).number for _ in range(2)]
        of_eve = new_task(store, eve).number
        expected = [many[0], of_lin[0], of_eve, many[1], of_lin[1], *many[2:]]
        assert list(store.tasks.queue_positions().items()) == [(number, at) for at, number in enumerate(expected, 1)]

        order = []
        for turn in range(6):  # one at a time, as with `max_running_tasks: 1`
            claimed = store.tasks.claim_next(NOW + turn)
            assert claimed is not None
            order.append(claimed.number)
            assert store.tasks.move(claimed.uid, FAILED, now=NOW + turn)
        assert order == [many[0], of_lin[0], of_eve, many[1], of_lin[1], many[2]]

    def test_a_user_with_enough_running_tasks_is_passed_over(self, store: Store) -> None:
        ada, lin = (new_user(store, name) for name in ("Ada", "Lin"))
        first, second = (new_task(store, ada).number for _ in range(2))
        third = new_task(store, lin).number
        claimed = [task and task.number for task in (store.tasks.claim_next(NOW, most_of_user=1) for _ in range(3))]
        assert claimed == [first, third, None]
        assert store.tasks.unfinished_of(ada.id) == 2
        assert store.tasks.queue_positions() == {second: 1}

    def test_threads_never_claim_the_same_task(self, store: Store) -> None:
        made = [new_task(store).number for _ in range(24)]
        together = threading.Barrier(6)

        def claim_all(_: int) -> list[int]:
            together.wait()
            return [task.number for task in iter(lambda: store.tasks.claim_next(NOW), None)]

        with ThreadPoolExecutor(6) as pool:
            claimed = [number for numbers in pool.map(claim_all, range(6)) for number in numbers]
        assert Counter(claimed) == Counter(made)

    def test_forked_processes_share_a_store_and_never_claim_the_same_task(self, store: Store) -> None:
        made = [new_task(store).number for _ in range(12)]
        context = multiprocessing.get_context("fork")
        results: Any = context.SimpleQueue()
        together = context.Barrier(4)

        def claim_all() -> None:
            together.wait()
            results.put([task.number for task in iter(lambda: store.tasks.claim_next(NOW), None)])

        with store.database.reading(), store.database.reading():  # two connections, so that one lies idle
            pass
        with store.database.reading() as connection:  # and one is in use while the children are born
            connection.execute(select(tasks.c.number)).all()
            children = [context.Process(target=claim_all) for _ in range(3)]
            for child in children:
                child.start()
            connection.execute(select(tasks.c.number)).all()
        together.wait()
        mine = [task.number for task in iter(lambda: store.tasks.claim_next(NOW), None)]
        for child in children:
            child.join()
            assert child.exitcode == 0
        claimed = [number for _ in children for number in results.get()]
        assert Counter(claimed + mine) == Counter(made)

    @pytest.mark.parametrize("origin", TaskState)
    def test_stop_is_at_once_before_the_start_a_wish_after_it_and_too_late_at_the_end(
        self, store: Store, origin: TaskState
    ) -> None:
        task = new_task(store, state=origin)
        happened = store.tasks.request_stop(task.number, NOW + 4)
        after = again(store, task)
        match origin:
            case TaskState.PENDING:
                assert happened
                assert (after.state, after.finished_at, after.reason) == (STOPPED, NOW + 4, "Stopped before it started")
            case TaskState.STARTING | TaskState.RUNNING:
                assert happened
                assert after == replace(task, stop_requested=True)
            case _:
                assert not happened
                assert after == task

    def test_an_unknown_task_cannot_be_stopped(self, store: Store) -> None:
        assert not store.tasks.request_stop(99, NOW)

    def test_a_stopped_task_is_never_claimed_regardless_of_who_is_faster(self, store: Store) -> None:
        made = [new_task(store) for _ in range(12)]
        together = threading.Barrier(2)

        def stop_all() -> None:
            together.wait()
            assert all(store.tasks.request_stop(task.number, NOW) for task in made)

        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(stop_all)
            together.wait()
            claimed = {task.number for task in iter(lambda: store.tasks.claim_next(NOW), None)}
            stopping.result()
        for task in made:
            after = again(store, task)
            assert after.stop_requested
            assert after.state is (STARTING if task.number in claimed else STOPPED)

    def test_the_queue_counts_pending_tasks_only(self, store: Store) -> None:
        made = [new_task(store, state=state) for state in (RUNNING, PENDING, STOPPED, PENDING)]
        assert store.tasks.queue_positions() == {made[1].number: 1, made[3].number: 2}


class TestDeletion:
    @pytest.mark.parametrize("origin", TaskState)
    def test_only_a_finished_task_is_deleted(self, store: Store, origin: TaskState) -> None:
        task = new_task(store, state=origin)
        assert store.tasks.request_delete(task.number) is (origin in FINISHED)
        assert [found.number for found in store.tasks.to_delete()] == ([task.number] if origin in FINISHED else [])
        if origin in FINISHED:
            store.tasks.delete(task.number)
            assert store.tasks.get(task.number) is None
        else:
            with pytest.raises(BadInput, match=f"Task {task.number} has not finished"):
                store.tasks.delete(task.number)
            assert again(store, task) == task

    def test_everything_of_a_deleted_task_goes_and_nothing_of_another(self, store: Store) -> None:
        gone, kept = new_task(store, state=COMPLETED), new_task(store, state=COMPLETED)
        for task in (gone, kept):
            store.rounds.record(task.uid, new_round(1))
            store.checkpoints.record(task.uid, new_checkpoint(1))
            store.events.add(Event(NOW, "task_finished", "Done", task=task.number))
        store.tasks.delete(gone.number)
        store.tasks.delete(gone.number)
        assert [count(store, table) for table in (tasks, rounds, checkpoints)] == [1, 1, 1]
        assert [event.task for event in store.events.newest()] == [kept.number]

    def test_a_number_is_never_given_again(self, store: Store) -> None:
        gone = new_task(store, state=STOPPED)
        store.tasks.delete(gone.number)
        assert new_task(store).number > gone.number
