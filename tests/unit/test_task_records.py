"""What the server records of a task besides its model: who takes part, who does not, what nodes suffer from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_task_machine import UID, came, plan_for

from fedsim.errors import SuspendReason
from fedsim.messages import TaskReport
from fedsim.server.participation import count_round, expected_of, expected_of_roster
from fedsim.server.progress import TaskProgress
from fedsim.server.projection import TaskProjection
from fedsim.server.task_dir import TaskDir
from fedsim.settings import TaskSettings
from fedsim.state_machines.task_events import WriteRoster
from fedsim.store import Store, open_store
from fedsim.store.records import RoundRecord, UserRole, UserState

SETTINGS = TaskSettings(dataset="mnist", num_clients=6, fraction_train=0.5, num_rounds=4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/fedsim.db")
    store.migrate()
    user = store.users.create("ada", "-", role=UserRole.USER, state=UserState.ACTIVE, language="", now=1.0)
    store.tasks.create(user.id, SETTINGS, UID, 1.0)
    yield store
    store.close()


def round_record(number: int, missing: tuple[int, ...]) -> RoundRecord:
    return RoundRecord(number, "d" * 64, 1, {}, 0, 0, 3, missing, 0.0)


def test_a_node_that_comes_online_after_the_planning_is_listed_once_also_after_a_restart(
    store: Store, tmp_path: Path
) -> None:
    plan = plan_for(SETTINGS, ("a", "b")).model_copy(update={"left_out": (("c", "has no data set digits"),)})
    records = TaskProjection(plan, TaskDir(tmp_path, UID), store)
    records.open()
    for known in ("a", "c"):
        assert records.came_late(known) is None
    write = records.came_late("d")
    assert write is not None
    write()
    restarted = TaskProjection(plan, TaskDir(tmp_path, UID), store)
    restarted.open()
    for one in (records, restarted):
        assert one.came_late("d") is None
    task = store.tasks.by_uid(UID)
    assert task is not None
    reason = "came online after the task was planned"
    assert task.left_out == {"c": "has no data set digits", "d": reason}
    assert [event.text for event in store.events.newest(task=1)] == [f"d takes no part: it {reason}"]


def test_updates_are_counted_by_node_as_the_rounds_chose_its_clients() -> None:
    plan = plan_for(SETTINGS, ("a", "b"))
    counts: dict[str, dict[str, int]] = {}
    for number in range(1, 5):
        *chunks, last = plan.chunks(number)
        missing = last.clients if number % 2 else ()
        counted = [*chunks, *(() if missing else (last,))]
        updates = tuple(
            came(plan.nodes[chunk.node], number, chunk.id).model_copy(update={"num_clients": len(chunk.clients)})
            for chunk in counted
        )
        expected = expected_of_roster(plan, WriteRoster(number, updates, missing))
        assert {node: count for node, count in expected.items() if count} == expected_of(plan, number)
        counts = count_round(plan, counts, round_record(number, missing), expected)
    assert sum(node["expected"] for node in counts.values()) == 4 * 3
    lost = {number: plan.chunks(number)[-1] for number in (1, 3)}
    for index, node in enumerate(plan.nodes):
        here = [chunk for chunk in lost.values() if chunk.node == index]
        assert counts[node]["missing"] == sum(len(chunk.clients) for chunk in here)
        assert counts[node]["rounds_missing"] == len(here)
        assert (counts[node]["first_client"], counts[node]["num_clients"]) == plan.placement[index]


def test_what_keeps_a_node_from_training_is_shown_while_it_does() -> None:
    nodes = SimpleNamespace(addresses={})
    progress = TaskProgress(cast("Any", SimpleNamespace(nodes=nodes)), cast("Any", None))

    def shown(**changes: Any) -> str:
        progress.node_reported("a", TaskReport(task=UID, state="ready").model_copy(update=changes))
        return progress._describe("a")

    assert shown(worker_deaths=1) == "a: a worker died once"
    assert shown(worker_deaths=3) == "a: a worker died 3 times in a row"
    assert shown(suspended=SuspendReason.DISK_FULL, worker_deaths=3) == "a: suspended: disk full"
    assert shown() == "a"
