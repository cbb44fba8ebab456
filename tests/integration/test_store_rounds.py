"""Rounds, checkpoints, nodes and events in the store, on SQLite and on MariaDB."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from store_support import (
    COMPLETED,
    NOW,
    RUNNING,
    again,
    new_checkpoint,
    new_round,
    new_task,
)

from fedsim.errors import BadInput
from fedsim.store.records import (
    Event,
    Node,
    RoundMetrics,
    RoundRecord,
)

if TYPE_CHECKING:
    from fedsim.store import Store

METRICS = {"accuracy": 0.875, "loss": 0.25, "a metric of the future": None}


class TestRounds:
    def test_missing_clients_are_listed_by_round_and_participation_is_the_tasks(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        counts = {"node-b": {"expected": 5, "missing": 2}}
        store.rounds.record(task.uid, new_round(1, missing=()), {"node-b": {"expected": 3, "missing": 0}})
        assert not again(store, task).lost_clients
        store.rounds.record(task.uid, new_round(2, missing=(3, 7)), counts)
        store.rounds.record(task.uid, new_round(1, missing=()))
        assert store.rounds.missing(task.number) == {2: (3, 7)}
        assert again(store, task).participation == counts
        assert again(store, task).lost_clients

    def test_a_round_comes_back_as_it_was_recorded(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        evaluated = new_round(2, metrics=METRICS, class_metrics={"recall": (1.0, None, 0.5)})
        for record in (evaluated, new_round(0, train_metrics={}, missing=()), new_round(1)):
            store.rounds.record(task.uid, record)
        assert store.rounds.of_task(task.number) == [
            new_round(0, train_metrics={}, missing=()),
            new_round(1),
            evaluated,
        ]
        assert store.rounds.of_task(task.number + 1) == []

    def test_recording_again_changes_nothing_and_never_unwrites_metrics(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        evaluated = new_round(1, metrics=METRICS, class_metrics={"recall": (1.0, None)})
        for record in (new_round(1, bytes_sent=1), evaluated, evaluated, new_round(1, train_metrics={})):
            store.rounds.record(task.uid, record)
        assert store.rounds.of_task(task.number) == [evaluated]
        store.rounds.record(task.uid, replace(evaluated, metrics={"accuracy": 0.75}))
        assert store.rounds.of_task(task.number) == [replace(evaluated, metrics={"accuracy": 0.75})]

    def test_the_task_shows_its_newest_round_and_its_newest_evaluation(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)

        def shown(record: RoundRecord) -> tuple[int, float | None, float | None]:
            store.rounds.record(task.uid, record)
            after = again(store, task)
            return after.round, after.metrics.get("loss"), after.metrics.get("accuracy")

        assert shown(new_round(0)) == (0, None, None)
        assert shown(new_round(5, metrics={"loss": 0.5, "accuracy": 0.7})) == (5, 0.5, 0.7)
        assert shown(new_round(6)) == (6, 0.5, 0.7)
        assert shown(new_round(0, metrics={"loss": 2.5, "accuracy": 0.1})) == (6, 0.5, 0.7)
        assert shown(new_round(6, metrics={"loss": 0.4, "accuracy": 0.8})) == (6, 0.4, 0.8)

    def test_numbers_that_are_none_are_kept_as_none(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        nan, inf = float("nan"), float("inf")
        record = new_round(
            1,
            seconds={"train": inf},
            train_metrics={"train_loss": inf},
            metrics={"loss": nan},
            class_metrics={"recall": (nan, 0.5)},
        )
        store.rounds.record(task.uid, record)
        (record,) = store.rounds.of_task(task.number)
        assert (record.seconds, record.train_metrics) == ({"train": None}, {"train_loss": None})
        assert (record.metrics, record.class_metrics) == ({"loss": None}, {"recall": (None, 0.5)})

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
            store.rounds.record(task.uid, new_round(number))
            store.checkpoints.record(task.uid, new_checkpoint(number))
        assert [record.round for record in store.rounds.of_task(task.number, **which)] == found
        assert [checkpoint.round for checkpoint in store.checkpoints.of_task(task.number, **which)] == found
        assert store.rounds.count(task.number) == 5

    def test_what_was_measured_in_some_rounds(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        store.rounds.record(task.uid, new_round(0, metrics={"loss": 2.5, "accuracy": 0.1}, train_metrics={}))
        store.rounds.record(task.uid, new_round(1))
        assert store.rounds.metrics(task.number, {1, 0, 7}) == [
            RoundMetrics(0, {}, {"loss": 2.5, "accuracy": 0.1}),
            RoundMetrics(1, {"train_loss": 0.5}, {}),
        ]
        assert store.rounds.metrics(task.number, set()) == []

    def test_a_million_missing_clients_fit(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        missing = tuple(range(1_000_000))
        store.rounds.record(task.uid, new_round(1, missing=missing))
        assert store.rounds.of_task(task.number)[0].missing == missing

    def test_rounds_and_checkpoints_need_their_task(self, store: Store) -> None:
        with pytest.raises(BadInput, match="is not in the database"):
            store.rounds.record("0" * 32, new_round(1))
        with pytest.raises(BadInput, match="is not in the database"):
            store.checkpoints.record("0" * 32, new_checkpoint(1))

    def test_threads_may_record_the_same_rounds(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        records = [new_round(number) for number in range(6)]
        together = threading.Barrier(4)

        def record_all(place: int) -> None:
            together.wait()
            for record in records if place % 2 else reversed(records):
                store.rounds.record(task.uid, record)
                store.events.add(Event(NOW, "round", "", task=task.number))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(record_all, range(4)))
        assert store.rounds.of_task(task.number) == records
        assert again(store, task).round == 5


class TestCheckpoints:
    def test_a_checkpoint_comes_back_and_can_be_recorded_again(self, store: Store) -> None:
        task = new_task(store, state=RUNNING)
        for number in (20, 10, 10):
            store.checkpoints.record(task.uid, new_checkpoint(number))
        assert store.checkpoints.of_task(task.number) == [new_checkpoint(10), new_checkpoint(20)]

    def test_a_removed_one_says_when_and_why(self, store: Store) -> None:
        task = new_task(store, state=COMPLETED)
        store.checkpoints.record(task.uid, new_checkpoint(10))
        store.checkpoints.mark_removed(task.number, 10, why="older than 30 days", now=NOW + 1)
        store.checkpoints.mark_removed(task.number, 10, why="again", now=NOW + 2)
        removed = replace(new_checkpoint(10), removed_at=NOW + 1, removed_why="older than 30 days")
        assert store.checkpoints.of_task(task.number) == [removed]

    def finished_task(self, store: Store, finished_at: float, *saved: int) -> int:
        task = new_task(store, state=RUNNING)
        for number in saved:
            store.checkpoints.record(task.uid, new_checkpoint(number))
        assert store.tasks.move(task.uid, COMPLETED, now=finished_at)
        return task.number

    def expired(
        self, store: Store, *, finished_before: float | None = None, keep_tasks: int | None = None
    ) -> list[tuple[int, int]]:
        found = store.checkpoints.expired(finished_before=finished_before, keep_tasks=keep_tasks)
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

    def test_the_best_round_of_a_task_stays(self, store: Store) -> None:
        old = self.finished_task(store, 100.0, 10, 20)
        task = store.tasks.get(old)
        assert task is not None
        best = {"round": 10, "metric": "accuracy", "value": 0.9}
        store.tasks.set_best(task.uid, best)
        assert self.expired(store, finished_before=200.0) == [(old, 20)]
        again = store.tasks.get(old)
        assert again is not None
        assert again.best == best

    def test_what_is_deleted_or_still_runs_does_not_expire(self, store: Store) -> None:
        old = self.finished_task(store, 100.0, 10, 20)
        running = new_task(store, state=RUNNING)
        store.checkpoints.record(running.uid, new_checkpoint(10))
        store.checkpoints.mark_removed(old, 10, why="age", now=NOW)
        assert self.expired(store, finished_before=NOW) == [(old, 20)]


class TestNodesAndEvents:
    def test_a_node_is_known_as_it_last_announced_itself(self, store: Store) -> None:
        store.nodes.record(Node("b", NOW, {"clients": 1}))
        store.nodes.record(Node("a", NOW, {"clients": 1}))
        newest = Node("b", NOW + 1, {"clients": 2, "problems": ["数据"], "runs": [[1, 2]] * 100_000})
        store.nodes.record(newest)
        assert store.nodes.all() == [Node("a", NOW, {"clients": 1}), newest]
        assert store.nodes.seen() == {"a": NOW, "b": NOW + 1}
        assert store.nodes.some(["b", "z"]) == [newest]
        store.nodes.keep({"b", "c"})
        assert store.nodes.all() == [newest]

    def test_threads_may_announce_the_same_node(self, store: Store) -> None:
        together = threading.Barrier(4)

        def announce(place: int) -> None:
            together.wait()
            store.nodes.record(Node("a", NOW, {"clients": place}))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(announce, range(4)))
        assert [node.name for node in store.nodes.all()] == ["a"]

    def test_events_come_newest_first_of_one_task_or_all(self, store: Store) -> None:
        told = [
            Event(NOW, "task_started", "Task 1 started", task=1, user="Ada", fields={"nodes": ["a"]}),
            Event(NOW, "diverged", "第 3 轮", task=1, fields={"round": 3}),
            Event(NOW + 1, "user_made", "Bob was made", user="Bob"),
            Event(NOW - 1, "task_started", "Task 2 started", task=2),
        ]
        for event in told:
            store.events.add(event)
        assert store.events.newest() == [told[2], told[1], told[0], told[3]]
        assert store.events.newest(task=1) == [told[1], told[0]]
        assert store.events.newest(limit=1) == [told[2]]

    def test_a_loss_that_is_no_number_does_not_lose_the_event(self, store: Store) -> None:
        store.events.add(Event(NOW, "diverged", "", fields={"loss": float("nan")}))
        assert store.events.newest()[0].fields == {"loss": None}
