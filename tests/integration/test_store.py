"""What `fedsim.store.interface` promises, asked of each database: one class of tests, run on SQLite and on MariaDB."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update

from fedsim.errors import BadInput
from fedsim.settings import TaskSettings
from fedsim.store.interface import (
    FINISHED,
    LEGAL_MOVES,
    Checkpoint,
    Event,
    Measured,
    Node,
    Progress,
    Role,
    RoundRecord,
    Store,
    Task,
    TaskState,
    User,
    UserState,
)
from fedsim.store.schema import attempts, checkpoints, rounds, sessions, tasks

if TYPE_CHECKING:
    from sqlalchemy import Table

    from fedsim.store import SqlStore

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
    given: dict[str, Any] = {"role": Role.USER, "state": UserState.ACTIVE, "language": "en", "now": NOW}
    return store.create_user(name, "$argon2id$…", **(given | changes))


def new_task(store: Store, user: User | None = None, state: TaskState = PENDING, **settings: Any) -> Task:
    owner = user or store.user_by_name("Ada") or new_user(store)
    task = store.create_task(owner.id, TaskSettings(**settings), uuid4().hex, NOW)
    for step in WAY[state]:
        assert store.move_task(task.uid, step, now=NOW + 1)
    return again(store, task)


def again(store: Store, task: Task) -> Task:
    found = store.task(task.number)
    assert found is not None
    return found


def count(store: SqlStore, table: Table) -> int:
    with store.reading() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def new_round(number: int, **changes: Any) -> RoundRecord:
    record = RoundRecord(
        round=number,
        digest=DIGEST,
        num_examples=6_000_000_000,
        train_loss=0.5,
        seconds={"train": 1.5},
        bytes_sent=2**40,
        bytes_received=2**41,
        cohort_size=10,
        missing=(3, 7),
        finished_at=NOW + number,
    )
    return replace(record, **changes)


def new_checkpoint(number: int) -> Checkpoint:
    return Checkpoint(
        round=number, path=f"task-1/round-{number:04d}.safetensors", digest=DIGEST, size=2**33, created_at=NOW
    )


class TestUsers:
    def test_a_user_comes_back_as_it_was_made(self, store: Store) -> None:
        user = new_user(store, "Ada", role=Role.ADMIN, state=UserState.WAITING, language="zh")
        assert user == User(user.id, "Ada", "$argon2id$…", Role.ADMIN, UserState.WAITING, "zh", NOW)
        assert store.user(user.id) == user
        assert store.user(user.id + 1) is None

    @pytest.mark.parametrize(
        ("name", "same"),
        [
            ("Ada", "aDA"),
            ("Ärger", "ÄRGER"),
            ("straße", "STRASSE"),
            ("Ada", "Ａｄａ"),
            ("张伟", "张伟"),
            ("Ada", " ada "),
        ],
    )
    def test_neither_case_nor_width_makes_another_name(self, store: Store, name: str, same: str) -> None:
        user = new_user(store, name)
        assert store.user_by_name(same) == user
        with pytest.raises(BadInput, match="is taken"):
            new_user(store, same)
        assert len(store.users()) == 1

    @pytest.mark.parametrize("other", ["Adà", "Ad", "Ada2", "A\u0000da"])
    def test_other_names_are_other_users(self, store: Store, other: str) -> None:
        assert new_user(store, "Ada").id != new_user(store, other).id
        assert store.user_by_name("nobody") is None

    @pytest.mark.parametrize("name", ["", "  ", "x" * 65])
    def test_a_name_must_be_there_and_fit(self, store: Store, name: str) -> None:
        with pytest.raises(BadInput, match="1 to 64 characters"):
            new_user(store, name)

    def test_the_longest_name_fits_however_it_folds(self, store: Store) -> None:
        user = new_user(store, "ΐ" * 64)  # one character that folds into three
        assert store.user_by_name("ΐ" * 64) == user

    def test_users_come_by_name(self, store: Store) -> None:
        for name in ("carl", "Bob", "ada"):
            new_user(store, name)
        assert [user.name for user in store.users()] == ["ada", "Bob", "carl"]

    def test_role_language_and_password_change(self, store: Store) -> None:
        user = new_user(store)
        store.set_user_role(user.id, Role.ADMIN)
        store.set_language(user.id, "zh")
        store.set_password_hash(user.id, "other")
        assert store.user(user.id) == replace(user, role=Role.ADMIN, language="zh", password_hash="other")

    @pytest.mark.parametrize("state", [UserState.DISABLED, UserState.WAITING])
    def test_who_is_not_active_loses_sessions_and_tokens_for_good(self, store: Store, state: UserState) -> None:
        user, other = new_user(store), new_user(store, "Bob")
        for owner, letter in ((user, "a"), (other, "b")):
            store.create_session(letter * 64, owner, "csrf", now=NOW, expires_at=NOW + 10)
            store.create_token(owner, "laptop", letter * 64, "fs_a", NOW)
        store.set_user_state(user.id, state)
        assert store.session("a" * 64, NOW) is None
        assert store.user_by_token("a" * 64, NOW) is None
        store.set_user_state(user.id, UserState.ACTIVE)
        assert store.session("a" * 64, NOW) is None
        assert store.user_by_token("a" * 64, NOW) is None
        assert store.session("b" * 64, NOW) is not None
        assert store.user_by_token("b" * 64, NOW) == other


class TestSessions:
    def test_a_session_brings_its_user(self, store: Store) -> None:
        user = new_user(store)
        store.create_session("a" * 64, user, "token", now=NOW + 5, expires_at=NOW + 10)
        session = store.session("a" * 64, NOW + 9)
        assert session is not None
        assert (session.user, session.csrf, session.created_at, session.expires_at) == (
            user,
            "token",
            NOW + 5,
            NOW + 10,
        )
        assert store.session("A" * 64, NOW + 9) is None

    def test_a_session_ends_at_its_time_or_by_logging_out(self, store: Store) -> None:
        user = new_user(store)
        store.create_session("a" * 64, user, "csrf", now=NOW, expires_at=NOW + 10)
        assert store.session("a" * 64, NOW + 10) is None
        store.end_session("a" * 64)
        assert store.session("a" * 64, NOW) is None

    def test_a_new_password_ends_every_session_and_token_of_this_user(self, store: Store) -> None:
        user, other = new_user(store), new_user(store, "Bob")
        for owner, letter in ((user, "a"), (other, "b")):
            store.create_session(letter * 64, owner, "csrf", now=NOW, expires_at=NOW + 10)
            store.create_token(owner, "laptop", letter * 64, "fs_a", NOW)
        store.set_password_hash(user.id, "other")
        assert store.session("a" * 64, NOW) is None
        assert store.user_by_token("a" * 64, NOW) is None
        assert store.session("b" * 64, NOW) is not None
        assert store.user_by_token("b" * 64, NOW) == other

    def test_who_has_another_password_by_now_or_is_not_active_gets_no_session_and_no_token(self, store: Store) -> None:
        before = new_user(store)
        store.set_password_hash(before.id, "other")
        changed = replace(before, password_hash="other")
        for letter, user in (("a", before), ("b", replace(changed, id=changed.id + 1))):
            assert not store.create_session(letter * 64, user, "csrf", now=NOW, expires_at=NOW + 10)
            assert store.create_token(user, "laptop", letter * 64, "fs_a", NOW) is None
        store.set_user_state(changed.id, UserState.DISABLED)
        assert not store.create_session("c" * 64, changed, "csrf", now=NOW, expires_at=NOW + 10)
        store.set_user_state(changed.id, UserState.ACTIVE)
        assert store.create_session("d" * 64, changed, "csrf", now=NOW, expires_at=NOW + 10)
        assert [store.session(letter * 64, NOW) is None for letter in "abcd"] == [True, True, True, False]
        assert not store.tokens(changed.id)

    def test_a_better_hash_of_the_same_password_ends_nothing(self, store: Store) -> None:
        user = new_user(store)
        store.create_session("a" * 64, user, "csrf", now=NOW, expires_at=NOW + 10)
        store.create_token(user, "laptop", "b" * 64, "fs_b", NOW)
        store.renew_password_hash(user.id, user.password_hash, "better")
        store.renew_password_hash(user.id, user.password_hash, "too late")
        renewed = replace(user, password_hash="better")
        assert store.user(user.id) == renewed
        assert store.session("a" * 64, NOW) is not None
        assert store.user_by_token("b" * 64, NOW) == renewed

    def test_expired_sessions_do_not_pile_up(self, store: SqlStore) -> None:
        user = new_user(store)
        for place in range(5):
            store.create_session(f"{place}" * 64, user, "csrf", now=NOW + place, expires_at=NOW + place + 0.5)
        assert count(store, sessions) == 1


class TestTokens:
    def test_a_token_names_its_owner_and_notes_its_use(self, store: Store) -> None:
        user = new_user(store)
        token = store.create_token(user, "my laptop 💻", "a" * 64, "fs_abc", NOW)
        assert token is not None
        assert (token.user_id, token.label, token.hint, token.used_at) == (user.id, "my laptop 💻", "fs_abc", None)
        assert store.user_by_token("a" * 64, NOW + 1) == user
        assert store.tokens(user.id) == [replace(token, used_at=NOW + 1)]
        assert store.user_by_token("c" * 64, NOW) is None

    def test_use_is_noted_to_the_minute(self, store: Store) -> None:
        user = new_user(store)
        store.create_token(user, "laptop", "a" * 64, "fs_a", NOW)
        for later in (1, 60, 61, 62):
            assert store.user_by_token("a" * 64, NOW + later) == user
        assert [token.used_at for token in store.tokens(user.id)] == [NOW + 61]

    def test_only_its_owner_deletes_a_token(self, store: Store) -> None:
        user, other = new_user(store), new_user(store, "Bob")
        token = store.create_token(user, "laptop", "a" * 64, "fs_a", NOW)
        assert token is not None
        assert not store.delete_token(other.id, token.id)
        assert store.delete_token(user.id, token.id)
        assert not store.delete_token(user.id, token.id)
        assert store.tokens(user.id) == []


class TestAttempts:
    def test_attempts_are_counted_by_key_each_until_its_time(self, store: Store) -> None:
        for until in (11.0, 12.0, 13.0):
            store.record_attempt("ada", now=1.0, until=until)
        store.record_attempt("bob", now=1.0, until=12.0)
        assert [store.attempts("ada", now) for now in (1.0, 11.0, 12.5, 13.0)] == [3, 2, 1, 0]
        store.clear_attempts("ada")
        assert store.attempts("ada", 1.0) == 0
        assert store.attempts("bob", 1.0) == 1

    def test_what_no_longer_counts_is_removed_under_any_key(self, store: SqlStore) -> None:
        for place in range(10):
            store.record_attempt(f"10.0.0.{place}", now=float(place), until=place + 2.5)
        assert count(store, attempts) == 3

    def test_what_was_typed_is_not_kept(self, store: SqlStore) -> None:
        typed = "correct horse battery staple \ud800" + "x" * 10_000
        store.record_attempt(typed, now=1.0, until=2.0)
        assert store.attempts(typed, 1.0) == 1
        with store.reading() as connection:
            assert "horse" not in str(connection.execute(select(attempts)).all())


class TestTasks:
    def test_a_submission_that_comes_again_is_the_same_task_for_its_user_only(self, store: Store) -> None:
        user, other = new_user(store), new_user(store, "Bob")
        first = store.create_task(user.id, TaskSettings(), uuid4().hex, NOW, submission="a" * 64)
        again = store.create_task(user.id, TaskSettings(), uuid4().hex, NOW + 1, submission="a" * 64)
        assert again == first == store.task_by_submission(user.id, "a" * 64)
        theirs = store.create_task(other.id, TaskSettings(), uuid4().hex, NOW, submission="a" * 64)
        assert theirs.number != first.number
        assert store.task_by_submission(other.id, "b" * 64) is None

    def test_tasks_without_a_submission_are_all_different(self, store: Store) -> None:
        user = new_user(store)
        made = [store.create_task(user.id, TaskSettings(), uuid4().hex, NOW) for _ in range(2)]
        assert made[0].number != made[1].number

    def test_a_submission_that_comes_many_times_at_once_is_one_task(self, store: Store) -> None:
        user = new_user(store)
        with ThreadPoolExecutor(8) as pool:
            made = list(
                pool.map(
                    lambda _: store.create_task(user.id, TaskSettings(), uuid4().hex, NOW, submission="a" * 64),
                    range(16),
                )
            )
        assert len({task.number for task in made}) == 1
        assert len(store.tasks()) == 1

    def test_a_new_task_waits(self, store: Store) -> None:
        user = new_user(store)
        settings = TaskSettings(title="第一次 🚀 \\ ' \"", seed=2**63 - 1, local_learning_rate=0.1 + 0.2, alpha=1e-3)
        uid = uuid4().hex
        task = store.create_task(user.id, settings, uid, NOW)
        assert task.settings == settings
        assert (task.uid, task.user_id, task.user_name, task.created_at) == (uid, user.id, "Ada", NOW)
        assert (task.state, task.reason, task.round, task.nodes, task.digest) == (PENDING, "", 0, (), None)
        assert task.stop_requested is False
        assert task.delete_requested is False
        assert store.task(task.number) == store.task_by_uid(uid) == task

    def test_unknown_tasks_are_none(self, store: Store) -> None:
        task = new_task(store)
        assert store.task(task.number + 1) is None
        assert store.task_by_uid("0" * 32) is None
        assert store.task_by_uid(task.uid.upper()) is None or task.uid.isdigit()

    def test_a_task_needs_a_user_and_a_uid_of_its_own(self, store: Store) -> None:
        task = new_task(store)
        with pytest.raises(BadInput, match="unknown, or the uid is taken"):
            store.create_task(task.user_id, TaskSettings(), task.uid, NOW)
        with pytest.raises(BadInput, match="unknown, or the uid is taken"):
            store.create_task(task.user_id + 1, TaskSettings(), uuid4().hex, NOW)

    def test_lists_are_newest_first_in_pages_of_one_user_or_all(self, store: Store) -> None:
        ada, bob = new_user(store), new_user(store, "Bob")
        made = [new_task(store, owner).number for owner in (ada, bob, ada, bob, ada)]
        assert [task.number for task in store.tasks()] == made[::-1]
        assert [task.number for task in store.tasks(ada.id)] == [made[4], made[2], made[0]]
        assert [task.number for task in store.tasks(ada.id, limit=1, before=made[4])] == [made[2]]
        assert {task.user_name for task in store.tasks(bob.id)} == {"Bob"}

    def test_a_restarted_server_finds_what_it_had_begun(self, store: Store) -> None:
        made = {state: new_task(store, state=state) for state in TaskState}
        assert [task.number for task in store.unfinished_tasks()] == [made[STARTING].number, made[RUNNING].number]

    def test_an_old_row_gets_the_defaults_of_newer_fields_and_loses_older_ones(self, store: SqlStore) -> None:
        task = new_task(store, title="old", num_rounds=3)
        old = {"title": "old", "num_rounds": 3, "model": "no longer installed", "gone_since": 1}
        with store.writing() as connection:
            connection.execute(update(tasks).values(settings=old))
        settings = again(store, task).settings
        assert settings == TaskSettings(title="old", num_rounds=3).model_copy(update={"model": "no longer installed"})
        assert settings.cohort_size == 10

    def test_progress_shows_while_a_task_runs_and_not_after(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        progress = Progress(4, "train", waiting_for=("bank-a", "bank-b"), waiting_until=NOW + 60, eta_seconds=12.5)
        store.set_progress(task.uid, progress)
        store.set_nodes(task.uid, ("bank-a", "bank-b"))
        seen = again(store, task)
        shown = Progress(seen.round, seen.phase, seen.waiting_for, seen.waiting_until, seen.eta_seconds)
        assert shown == progress
        assert seen.nodes == ("bank-a", "bank-b")
        assert store.move_task(task.uid, FAILED, reason="bank-a left", now=NOW + 9)
        store.set_progress(task.uid, progress)
        done = again(store, task)
        assert (done.round, done.phase, done.waiting_for, done.waiting_until, done.eta_seconds) == (
            4,
            "",
            (),
            None,
            None,
        )

    def test_ten_thousand_nodes_can_be_waited_for(self, store: Store) -> None:
        task = new_task(store, state=STARTING)
        names = tuple(f"node-{place:060d}" for place in range(10_000))
        store.set_progress(task.uid, Progress(0, "gather", waiting_for=names))
        assert again(store, task).waiting_for == names


class TestMoves:
    @pytest.mark.parametrize("target", TaskState)
    @pytest.mark.parametrize("origin", TaskState)
    def test_a_task_moves_where_it_legally_can_and_nowhere_else(
        self, store: Store, origin: TaskState, target: TaskState
    ) -> None:
        task = new_task(store, state=origin)
        other = new_task(store, state=origin)
        moved = store.move_task(task.uid, target, reason="because", now=NOW + 7, digest=DIGEST)
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
            assert store.move_task(task.uid, state, now=NOW + later)
        done = again(store, task)
        assert (done.created_at, done.started_at, done.finished_at) == (NOW, NOW + 1, NOW + 3)

    def test_a_digest_stays_when_none_is_given(self, store: Store) -> None:
        task = new_task(store)
        assert store.move_task(task.uid, STARTING, now=NOW, digest=DIGEST)
        assert store.move_task(task.uid, RUNNING, now=NOW)
        assert again(store, task).digest == DIGEST

    def test_an_unknown_task_does_not_move(self, store: Store) -> None:
        assert not store.move_task("0" * 32, STOPPED, now=NOW)

    def test_tasks_are_claimed_oldest_first(self, store: Store) -> None:
        first, stopped, second = new_task(store), new_task(store, state=STOPPED), new_task(store)
        claimed = store.claim_next_task(NOW + 5)
        assert claimed == replace(first, state=STARTING, started_at=NOW + 5)
        assert [task.number for task in (store.claim_next_task(NOW),) if task] == [second.number]
        assert store.claim_next_task(NOW) is None
        assert again(store, stopped) == stopped

    def test_threads_never_claim_the_same_task(self, store: Store) -> None:
        made = [new_task(store).number for _ in range(24)]
        together = threading.Barrier(6)

        def claim_all(_: int) -> list[int]:
            together.wait()
            return [task.number for task in iter(lambda: store.claim_next_task(NOW), None)]

        with ThreadPoolExecutor(6) as pool:
            claimed = [number for numbers in pool.map(claim_all, range(6)) for number in numbers]
        assert Counter(claimed) == Counter(made)

    def test_forked_processes_share_a_store_and_never_claim_the_same_task(self, store: SqlStore) -> None:
        made = [new_task(store).number for _ in range(12)]
        context = multiprocessing.get_context("fork")
        results: Any = context.SimpleQueue()
        together = context.Barrier(4)

        def claim_all() -> None:
            together.wait()
            results.put([task.number for task in iter(lambda: store.claim_next_task(NOW), None)])

        with store.reading(), store.reading():  # two connections, so that one lies idle
            pass
        with store.reading() as connection:  # and one is in use while the children are born
            connection.execute(select(tasks.c.number)).all()
            children = [context.Process(target=claim_all) for _ in range(3)]
            for child in children:
                child.start()
            connection.execute(select(tasks.c.number)).all()
        together.wait()
        mine = [task.number for task in iter(lambda: store.claim_next_task(NOW), None)]
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
        happened = store.request_stop(task.number, NOW + 4)
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
        assert not store.request_stop(99, NOW)

    def test_a_stopped_task_is_never_claimed_whoever_is_faster(self, store: Store) -> None:
        made = [new_task(store) for _ in range(12)]
        together = threading.Barrier(2)

        def stop_all() -> None:
            together.wait()
            assert all(store.request_stop(task.number, NOW) for task in made)

        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(stop_all)
            together.wait()
            claimed = {task.number for task in iter(lambda: store.claim_next_task(NOW), None)}
            stopping.result()
        for task in made:
            after = again(store, task)
            assert after.stop_requested
            assert after.state is (STARTING if task.number in claimed else STOPPED)

    def test_the_queue_counts_pending_tasks_only(self, store: Store) -> None:
        made = [new_task(store, state=state) for state in (RUNNING, PENDING, STOPPED, PENDING)]
        assert [store.queue_position(task.number) for task in made] == [None, 1, None, 2]
        assert store.queue_position(99) is None


class TestDeletion:
    @pytest.mark.parametrize("origin", TaskState)
    def test_only_a_finished_task_is_deleted(self, store: Store, origin: TaskState) -> None:
        task = new_task(store, state=origin)
        assert store.request_delete(task.number) is (origin in FINISHED)
        assert [found.number for found in store.tasks_to_delete()] == ([task.number] if origin in FINISHED else [])
        if origin in FINISHED:
            store.delete_task(task.number)
            assert store.task(task.number) is None
        else:
            with pytest.raises(BadInput, match=f"Task {task.number} is not finished"):
                store.delete_task(task.number)
            assert again(store, task) == task

    def test_everything_of_a_deleted_task_goes_and_nothing_of_another(self, store: SqlStore) -> None:
        gone, kept = new_task(store, state=COMPLETED), new_task(store, state=COMPLETED)
        for task in (gone, kept):
            store.record_round(task.uid, new_round(1))
            store.record_checkpoint(task.uid, new_checkpoint(1))
            store.add_event(Event(NOW, "task_finished", "Done", task=task.number))
        store.delete_task(gone.number)
        store.delete_task(gone.number)
        assert [count(store, table) for table in (tasks, rounds, checkpoints)] == [1, 1, 1]
        assert [event.task for event in store.events()] == [kept.number]

    def test_a_number_is_never_given_again(self, store: Store) -> None:
        gone = new_task(store, state=STOPPED)
        store.delete_task(gone.number)
        assert new_task(store).number > gone.number


class TestRounds:
    def test_a_round_comes_back_as_it_was_recorded(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        evaluated = new_round(2, loss=0.25, accuracy=0.875, recall=(1.0, None, 0.5), auc=0.9)
        for record in (evaluated, new_round(0, train_loss=None, missing=()), new_round(1)):
            store.record_round(task.uid, record)
        assert store.rounds(task.number) == [new_round(0, train_loss=None, missing=()), new_round(1), evaluated]
        assert store.rounds(task.number + 1) == []

    def test_recording_again_changes_nothing_and_never_unwrites_metrics(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        evaluated = new_round(1, loss=0.25, accuracy=0.875, recall=(1.0, None), auc=0.9)
        for record in (new_round(1, bytes_sent=1), evaluated, evaluated, new_round(1, train_loss=None)):
            store.record_round(task.uid, record)
        assert store.rounds(task.number) == [evaluated]
        store.record_round(task.uid, replace(evaluated, accuracy=0.75))
        assert store.rounds(task.number) == [replace(evaluated, accuracy=0.75)]

    def test_the_task_shows_its_newest_round_and_its_newest_evaluation(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)

        def shown(record: RoundRecord) -> tuple[int, float | None, float | None]:
            store.record_round(task.uid, record)
            after = again(store, task)
            return after.round, after.loss, after.accuracy

        assert shown(new_round(0)) == (0, None, None)
        assert shown(new_round(5, loss=0.5, accuracy=0.7)) == (5, 0.5, 0.7)
        assert shown(new_round(6)) == (6, 0.5, 0.7)
        assert shown(new_round(0, loss=2.5, accuracy=0.1)) == (6, 0.5, 0.7)
        assert shown(new_round(6, loss=0.4, accuracy=0.8)) == (6, 0.4, 0.8)

    def test_numbers_that_are_none_are_kept_as_none(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        nan, inf = float("nan"), float("inf")
        store.record_round(task.uid, new_round(1, train_loss=inf, loss=nan, recall=(nan, 0.5), seconds={"train": inf}))
        (record,) = store.rounds(task.number)
        assert (record.train_loss, record.loss, record.recall, record.seconds) == (
            None,
            None,
            (None, 0.5),
            {"train": None},
        )

    @pytest.mark.parametrize(
        ("which", "found"),
        [
            ({}, [0, 1, 2, 4, 5]),
            ({"limit": 2}, [0, 1]),
            ({"limit": 2, "newest": True}, [4, 5]),
            ({"after": 1}, [2, 4, 5]),
            ({"after": 1, "before": 5, "limit": 1, "newest": True}, [4]),
            ({"after": 5}, []),
        ],
    )
    def test_a_stretch_of_the_rounds_and_of_the_checkpoints(
        self, store: Store, which: dict[str, Any], found: list[int]
    ) -> None:
        task = new_task(store, state=RUNNING)
        for number in (5, 4, 2, 1, 0):
            store.record_round(task.uid, new_round(number))
            store.record_checkpoint(task.uid, new_checkpoint(number))
        assert [record.round for record in store.rounds(task.number, **which)] == found
        assert [checkpoint.round for checkpoint in store.checkpoints(task.number, **which)] == found
        assert store.count_rounds(task.number) == 5

    def test_what_was_measured_in_some_rounds(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        store.record_round(task.uid, new_round(0, loss=2.5, accuracy=0.1, train_loss=None))
        store.record_round(task.uid, new_round(1))
        assert store.measured(task.number, {1, 0, 7}) == [Measured(0, None, 2.5, 0.1), Measured(1, 0.5, None, None)]
        assert store.measured(task.number, set()) == []

    def test_a_million_missing_clients_fit(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        missing = tuple(range(1_000_000))
        store.record_round(task.uid, new_round(1, missing=missing))
        assert store.rounds(task.number)[0].missing == missing

    def test_rounds_and_checkpoints_need_their_task(self, store: Store) -> None:
        with pytest.raises(BadInput, match="no task"):
            store.record_round("0" * 32, new_round(1))
        with pytest.raises(BadInput, match="no task"):
            store.record_checkpoint("0" * 32, new_checkpoint(1))

    def test_threads_may_record_the_same_rounds(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        records = [new_round(number) for number in range(6)]
        together = threading.Barrier(4)

        def record_all(place: int) -> None:
            together.wait()
            for record in records if place % 2 else reversed(records):
                store.record_round(task.uid, record)
                store.add_event(Event(NOW, "round", "", task=task.number))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(record_all, range(4)))
        assert store.rounds(task.number) == records
        assert again(store, task).round == 5


class TestCheckpoints:
    def test_a_checkpoint_comes_back_and_can_be_recorded_again(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        for number in (20, 10, 10):
            store.record_checkpoint(task.uid, new_checkpoint(number))
        assert store.checkpoints(task.number) == [new_checkpoint(10), new_checkpoint(20)]

    def test_a_removed_one_says_when_and_why(self, store: Store) -> None:
        task = new_task(store, state=COMPLETED)
        store.record_checkpoint(task.uid, new_checkpoint(10))
        store.mark_checkpoint_removed(task.number, 10, why="older than 30 days", now=NOW + 1)
        store.mark_checkpoint_removed(task.number, 10, why="again", now=NOW + 2)
        removed = replace(new_checkpoint(10), removed_at=NOW + 1, removed_why="older than 30 days")
        assert store.checkpoints(task.number) == [removed]

    def finished_task(self, store: Store, finished_at: float, *saved: int) -> int:
        task = new_task(store, state=RUNNING)
        for number in saved:
            store.record_checkpoint(task.uid, new_checkpoint(number))
        assert store.move_task(task.uid, COMPLETED, now=finished_at)
        return task.number

    def expired(
        self, store: Store, *, finished_before: float | None = None, keep_tasks: int | None = None
    ) -> list[tuple[int, int]]:
        found = store.expired_checkpoints(finished_before=finished_before, keep_tasks=keep_tasks)
        return [(task.number, checkpoint.round) for task, checkpoint in found]

    def test_without_a_rule_nothing_expires(self, store: Store) -> None:
        self.finished_task(store, NOW, 10)
        assert self.expired(store) == []

    def test_age_counts_from_the_end_of_the_task(self, store: Store) -> None:
        old, _ = self.finished_task(store, 100.0, 10, 20), self.finished_task(store, 200.0, 10)
        assert self.expired(store, finished_before=200.0) == [(old, 10), (old, 20)]

    def test_the_last_finished_tasks_stay_and_those_without_a_checkpoint_take_no_place(self, store: Store) -> None:
        long = self.finished_task(store, 500.0, 10)
        old, newer = self.finished_task(store, 100.0, 10), self.finished_task(store, 200.0, 10)
        self.finished_task(store, 600.0)
        assert self.expired(store, keep_tasks=2) == [(old, 10)]
        assert self.expired(store, keep_tasks=1) == [(old, 10), (newer, 10)]
        assert self.expired(store, keep_tasks=1, finished_before=550.0) == [(old, 10), (newer, 10), (long, 10)]

    def test_what_is_gone_or_still_runs_does_not_expire(self, store: Store) -> None:
        old = self.finished_task(store, 100.0, 10, 20)
        running = new_task(store, state=RUNNING)
        store.record_checkpoint(running.uid, new_checkpoint(10))
        store.mark_checkpoint_removed(old, 10, why="age", now=NOW)
        assert self.expired(store, finished_before=NOW) == [(old, 20)]


class TestNodesAndEvents:
    def test_a_node_is_known_as_it_last_announced_itself(self, store: Store) -> None:
        store.record_node(Node("b", NOW, {"clients": 1}))
        store.record_node(Node("a", NOW, {"clients": 1}))
        newest = Node("b", NOW + 1, {"clients": 2, "problems": ["数据"], "runs": [[1, 2]] * 100_000})
        store.record_node(newest)
        assert store.nodes() == [Node("a", NOW, {"clients": 1}), newest]
        store.keep_nodes({"b", "c"})
        assert store.nodes() == [newest]

    def test_threads_may_announce_the_same_node(self, store: Store) -> None:
        together = threading.Barrier(4)

        def announce(place: int) -> None:
            together.wait()
            store.record_node(Node("a", NOW, {"clients": place}))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(announce, range(4)))
        assert [node.name for node in store.nodes()] == ["a"]

    def test_events_come_newest_first_of_one_task_or_all(self, store: Store) -> None:
        told = [
            Event(NOW, "task_started", "Task 1 started", task=1, user="Ada", fields={"nodes": ["a"]}),
            Event(NOW, "diverged", "第 3 轮", task=1, fields={"round": 3}),
            Event(NOW + 1, "user_made", "Bob was made", user="Bob"),
            Event(NOW - 1, "task_started", "Task 2 started", task=2),
        ]
        for event in told:
            store.add_event(event)
        assert store.events() == [told[2], told[1], told[0], told[3]]
        assert store.events(task=1) == [told[1], told[0]]
        assert store.events(limit=1) == [told[2]]

    def test_a_loss_that_is_no_number_does_not_lose_the_event(self, store: Store) -> None:
        store.add_event(Event(NOW, "diverged", "", fields={"loss": float("nan")}))
        assert store.events()[0].fields == {"loss": None}
