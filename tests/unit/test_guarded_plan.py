"""Guarded data sets and least numbers of clients: what the server plans for them, and what nodes refuse without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plugin_support import INFO, attempt, hello
from pydantic import ValidationError
from test_institution_rules import config
from test_task_machine_more import assignment

from fedsim.client.guards import earlier_tasks, query_digest
from fedsim.config import ClientConfig, DataSetConfig
from fedsim.data.load import inspect_dataset
from fedsim.durations import DAY_SECONDS
from fedsim.learning.strategies import Uplink
from fedsim.messages import Broadcast, Chunk, DataSetInfo, GuardInfo, TaskReport
from fedsim.settings import TaskSettings
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import Spool
from fedsim.state_machines.candidates import Impossible, Waiting
from fedsim.state_machines.participants import Participants
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.policy import AcceptedTask, beyond_rules, refusal
from fedsim.text import rounded
from fedsim.worker.jobs import DataLoaded, GuardOrder, JobFailed, Load
from fedsim.worker.node_jobs import NodeJobs

SETTINGS = TaskSettings(num_clients=8, fraction_train=0.5, partition="iid", num_rounds=3, testset_from="a")


def guarded(letter: str, blocks: int = 30, size: int = 20) -> DataSetInfo:
    guard = GuardInfo(secret_digest=letter * 64, block_size=size, num_blocks=blocks)
    return INFO.model_copy(update={"guard": guard, "digest": letter * 64, "num_train": blocks * size})


def plan(settings: TaskSettings = SETTINGS, **infos: DataSetInfo) -> Plan | Waiting | Impossible:
    return attempt(settings, [hello(name, datasets=(info,)) for name, info in infos.items()])


def test_nodes_with_guarded_data_take_part_each_with_its_own() -> None:
    made = plan(a=guarded("a"), b=guarded("b"))
    assert isinstance(made, Plan)
    assert [share.guard for share in made.shares] == ["a" * 64, "b" * 64]
    assert made.dataset_digest is None
    assert made.assignment("b").guard == "b" * 64
    assert made.notes[-1] == "a task with guarded data can be repeated with the same nodes, not by simulate"
    reported = Participants(made, None, {})
    assert reported.add_ready("a", TaskReport(task=made.task, state="ready", num_examples=((4, 140),))) is None
    too_many = TaskReport(task=made.task, state="ready", num_examples=((4, 160),))
    assert reported.add_ready("b", too_many) == "node b reported 640 examples, it announced 600"


def test_open_and_guarded_data_are_not_mixed_but_with_local() -> None:
    made = plan(SETTINGS.model_copy(update={"testset_from": ""}), a=guarded("a"), b=INFO, c=INFO)
    assert isinstance(made, Plan)
    assert made.left_out == (("a", "guards its data, unlike b (access in client.yml)"),)
    both = plan(SETTINGS.model_copy(update={"partition": "local"}), a=guarded("a"), b=INFO)
    assert isinstance(both, Plan)
    assert both.nodes == ("a", "b")


def test_a_node_gets_no_more_clients_than_its_blocks_allow() -> None:
    made = plan(SETTINGS.model_copy(update={"num_clients": 17}), a=guarded("a", blocks=4), b=guarded("b", blocks=60))
    assert isinstance(made, Plan)
    assert [share.num_clients for share in made.shares] == [2, 15]
    waiting = plan(SETTINGS.model_copy(update={"num_clients": 40}), a=guarded("a", blocks=4), b=guarded("b", blocks=60))
    assert isinstance(waiting, Waiting)
    assert "can simulate 22 together of whole blocks of guarded data" in waiting.reason


def test_what_users_see_of_guarded_data_is_rounded() -> None:
    made = plan(a=guarded("a", blocks=7183))
    assert isinstance(made, Plan)
    assert made.guarded
    assert (made.shares[0].num_train, made.shares[0].shown.num_train) == (143_660, 140_000)
    report = TaskReport(task=made.task, state="ready", num_examples=((8, 17_940),))
    announced = hello("a", datasets=(guarded("a", blocks=7183), INFO), tasks=(report,))
    closed, public = announced.shown.datasets
    assert closed.guard is not None
    assert (closed.num_train, closed.num_test, closed.guard.num_blocks) == (140_000, 100, 7100)
    assert public == INFO
    assert announced.shown.tasks[0].num_examples == ()
    assert [rounded(count) for count in (0, 7, 19, 199, 1437)] == [0, 7, 19, 190, 1400]


def test_a_file_is_divided_once() -> None:
    rows = [{"name": name, "path": "people.csv", "label_column": name} for name in ("first", "second")]
    document: dict[str, Any] = {"name": "a", "server": {"port": 1}, "datasets": rows}
    with pytest.raises(ValidationError, match=r"first and second are guarded and have the same path people\.csv"):
        ClientConfig.model_validate(document)
    document["datasets"][1]["access"] = "open"
    ClientConfig.model_validate(document)


def test_a_full_batch_leaves_a_node_out() -> None:
    made = plan(SETTINGS.model_copy(update={"local_batch_size": 10**6}), a=guarded("a"))
    assert isinstance(made, Waiting)
    assert "guards mnist in about 30 blocks of 20 examples, and a client needs 50001" in made.reason


@pytest.mark.parametrize(
    ("changes", "rules", "problem"),
    [
        ({}, {"min_clients": 4}, ""),
        ({"num_clients": 3}, {"min_clients": 4}, "a would have 3 clients, and its institution wants 4"),
        ({"fraction_train": 0.25}, {"min_clients": 4}, "the cohort of round 1 has 2 clients of a"),
        ({"aggregation": "median"}, {"min_clients": 4}, "median needs that of each client (individual_updates)"),
        ({"aggregation": "median"}, {"min_clients": 4, "individual_updates": True}, ""),
        ({"partition": "local"}, {"min_clients": 4}, ""),
    ],
)
def test_an_institution_wants_several_clients_behind_an_update(
    changes: dict[str, Any], rules: dict[str, Any], problem: str
) -> None:
    settings = SETTINGS.model_copy(update=changes)
    made = attempt(settings, [hello("a", **{"workers": 8, "individual_updates": False, **rules})])
    if problem:
        assert not isinstance(made, Plan)
        assert problem in made.reason
        return
    assert isinstance(made, Plan)
    for number in range(1, 4):
        for chunk in made.chunks(number):
            asked = Broadcast(chunks=(Chunk(id=chunk.id, clients=chunk.clients),))
            assert beyond_rules(made.assignment("a"), config(**rules).institution, number, asked) is None


def test_the_node_checks_the_clients_behind_each_update_itself() -> None:
    rules = config(min_clients=2)
    asked = assignment(num_clients=4)
    assert refusal(asked, rules, processors=2) is None
    one = Broadcast(chunks=(Chunk(id=0, clients=(0, 1)), Chunk(id=1, clients=(2,))))
    reason = "round 1 asks for an update of 1 clients, this institution lets none leave of fewer than 2 (min_clients)"
    assert beyond_rules(asked, rules.institution, 1, one) == reason
    assert beyond_rules(asked, rules.institution, 2, Broadcast(final=True)) is None
    assert "1 are asked for (min_clients)" in str(refusal(assignment(num_clients=1), rules, processors=2))
    each = assignment(num_clients=4, uplink=Uplink.EACH_CLIENT)
    assert "needs that of each client (individual_updates)" in str(refusal(each, rules, processors=2))
    assert refusal(each, config(min_clients=2, individual_updates=True), processors=2) is None
    assert "of 3 clients" in str(
        beyond_rules(each, config(min_clients=4).institution, 1, Broadcast(chunks=(Chunk(id=0, clients=(0, 1, 2)),)))
    )


def test_a_task_that_ignores_the_blocks_is_refused_unless_it_was_there_before(tmp_path: Path) -> None:
    closed = config()
    guarded_config = closed.model_copy(
        update={"datasets": [DataSetConfig.model_validate({"name": "mnist", "path": "m", "share": True})]}
    )
    asked = assignment()
    assert "guarded here, and the task was planned as if it were open" in str(refusal(asked, guarded_config))
    assert refusal(asked, guarded_config, earlier=True) is None
    assert refusal(assignment(guard="a" * 64), guarded_config) is None

    spool = Spool(tmp_path).open()
    log = tmp_path / "audit.jsonl"
    log.write_text("".join(json.dumps({"kind": "localparam", "uid": digit * 32}) + "\n" for digit in "13"))
    for digit in "12":  # the server has sent the second one before this version was started
        before = spool.path(FileId(kind=Kind.INITPARAM, task=digit * 32), "")
        before.parent.mkdir(parents=True, exist_ok=True)
        before.write_text(assignment(task=digit * 32).model_dump_json())
    assert earlier_tasks(spool, log) == {query_digest(assignment(task="1" * 32))}
    late = assignment(task="3" * 32)
    spool.path(FileId(kind=Kind.INITPARAM, task="3" * 32), "").write_text(late.model_dump_json())
    assert query_digest(late) not in earlier_tasks(spool, log)
    assert query_digest(assignment(task="1" * 32, num_clients=1)) not in earlier_tasks(spool, log)


def test_the_tasks_of_a_year_on_a_guarded_data_set_are_counted_for_all_users() -> None:
    datasets = [DataSetConfig.model_validate({"name": "mnist", "path": "m", "share": True})]
    limited = config(max_tasks=2).model_copy(update={"datasets": datasets})
    now = 1000.0 * DAY_SECONDS
    earlier = [AcceptedTask(now - days * DAY_SECONDS, f"{days:032x}", "mnist", f"user{days}") for days in (1, 300, 400)]
    asked = assignment(guard="a" * 64)
    assert refusal(asked, limited, earlier, now) == (
        "this institution takes 2 tasks a year on the guarded data set mnist, and has taken 2 (max_tasks)"
    )
    assert refusal(asked, limited, earlier[1:], now) is None
    assert refusal(assignment(), config(max_tasks=2), earlier, now) is None  # that of `config` is open


@pytest.mark.parametrize(
    ("secret", "problem"), [("mine", ""), ("f" * 64, "not planned with the blocks"), (None, "not")]
)
def test_a_worker_loads_guarded_data_only_for_tasks_that_were_planned_with_its_blocks(
    tmp_path: Path, secret: str | None, problem: str
) -> None:
    dataset = DataSetConfig.model_validate({"name": "digits", "path": "digits", "format": "digits"})
    guard = GuardOrder(path=tmp_path / "guarded" / "digits.npz", min_difference=20)
    info = inspect_dataset(dataset, tmp_path, (guard.path, guard.min_difference))
    assert info.guard is not None
    assert info.num_train == 20 * info.guard.num_blocks < 1437
    settings = SETTINGS.model_copy(update={"dataset": "digits", "model": "logistic"})
    made = attempt(settings, [hello("a", datasets=(info.model_copy(update={"share_test": True}),))])
    assert isinstance(made, Plan)
    asked = made.assignment("a").model_copy(update={} if secret == "mine" else {"guard": secret})
    job = Load(assignment=asked, dataset=dataset, folder=tmp_path, min_examples=1, guard=guard)
    if problem:
        with pytest.raises(Exception, match=problem):
            NodeJobs(1).do(job)
        return
    reply = NodeJobs(1).do(job)
    assert isinstance(reply, DataLoaded)
    assert all(size % 20 == 0 and size >= 40 for _, size in reply.num_examples)
    assert reply.partition == ""


@pytest.mark.parametrize(("max_steps", "refused"), [(1, True), (1000, False), (0, False)])
@pytest.mark.parametrize("guarded", [True, False])
def test_a_client_uses_as_many_examples_as_the_institution_demands(
    tmp_path: Path, max_steps: int, refused: bool, guarded: bool
) -> None:
    dataset = DataSetConfig.model_validate({"name": "digits", "path": "digits", "format": "digits"})
    guard = GuardOrder(path=tmp_path / "guarded" / "digits.npz", min_difference=20) if guarded else None
    info = inspect_dataset(dataset, tmp_path, (guard.path, guard.min_difference) if guard else None)
    chosen = {"dataset": "digits", "model": "logistic", "max_steps": max_steps, "num_clients": 4}
    settings = SETTINGS.model_copy(update=chosen)
    made = attempt(settings, [hello("a", datasets=(info.model_copy(update={"share_test": True}),))])
    assert isinstance(made, Plan)
    job = Load(assignment=made.assignment("a"), dataset=dataset, folder=tmp_path, min_examples=21, guard=guard)
    reply = NodeJobs(1).do(job)
    if not refused:
        assert isinstance(reply, DataLoaded)
        return
    assert isinstance(reply, JobFailed)
    assert reply.refused
    rule = "passes over all the examples of a guarded" if guarded else "uses at least 21 examples for an update"
    assert f"a client {rule} data set" in reply.reason or f"a client {rule} (min_examples)" in reply.reason
    assert reply.reason.endswith("max_steps is 1: raise it, set it to 0, or choose a larger local_batch_size")
