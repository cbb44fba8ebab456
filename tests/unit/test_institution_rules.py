"""What a server orders is bounded by the institution's rules in client.yml, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_task_machine_more import assignment, ready_node

from fedsim.client.audit_log import AuditLog
from fedsim.config import ClientConfig
from fedsim.durations import DAY_SECONDS
from fedsim.messages import Broadcast, Chunk, EngineInfo
from fedsim.state_machines.node_events import EndWorkers, GlobalArrived, Report, TrainChunk
from fedsim.state_machines.own_engines import announced_options, with_private_options
from fedsim.state_machines.policy import AcceptedTask, refusal
from fedsim.worker.jobs import JobFailed, Load
from fedsim.worker.node_jobs import NodeJobs


def config(clients: int = 100, **rules: Any) -> ClientConfig:
    return ClientConfig.model_validate(
        {
            "name": "a",
            "server": {"port": 1},
            "clients": clients,
            "datasets": [{"name": "mnist", "path": "m", "share": True, "access": "open"}],
            "institution": rules,
        }
    )


def refused(*, clients: int = 100, accepted: tuple[AcceptedTask, ...] = (), now: float = 0.0, **rules: Any) -> str:
    asked = assignment(user="ada")
    reason = refusal(asked, config(clients, **rules), accepted, now, processors=2)
    assert reason is not None
    return reason


def test_without_rules_a_task_is_accepted() -> None:
    assert refusal(assignment(user="ada"), config()) is None


def test_a_node_is_given_no_more_clients_than_it_simulates() -> None:
    assert refused(clients=1) == "2 clients are asked for, this node simulates at most 1"


def test_more_threads_than_processors_are_refused() -> None:
    asked = assignment(engine=EngineInfo(threads=64))
    assert refusal(asked, config(), processors=2) == "64 threads are asked for, this node has 2 processors"
    assert refusal(asked, config(), processors=64) is None


def test_the_server_chooses_no_cluster_for_the_data_of_a_node() -> None:
    elsewhere = {"address": "203.0.113.9:6379"}
    ray = {"name": "ray", "threads": 1}
    own = config().model_copy(update={"engine": "ray", "engine_options": {"address": "10.0.0.1:6379", "processes": 4}})
    reason = refusal(assignment(engine=EngineInfo(**ray, options=elsewhere)), config(), processors=2)
    assert reason == "the engine ray is used only where the node's owner has chosen it (engine in client.yml)"
    reason = refusal(assignment(engine=EngineInfo(**ray, options=elsewhere)), own, processors=2)
    assert reason == "only the node's owner sets address of the engine ray (engine_options)"
    planned = EngineInfo(**ray, options=announced_options(own))
    assert planned.options == {"processes": 4}, "no message holds the address"
    assert refusal(assignment(engine=planned), own, processors=2) is None
    assert with_private_options(planned, own).options == own.engine_options
    assert with_private_options(EngineInfo(name="batched"), own).options == {}
    unknown = refusal(assignment(engine=EngineInfo(name="nowhere", threads=1)), config(), processors=2)
    assert unknown == "the engine nowhere is not installed here"


def test_the_passes_over_the_data_are_bounded() -> None:
    passes = assignment().settings.num_rounds * assignment().settings.local_epochs
    assert f"are {passes} passes over the data, this institution allows {passes - 1} (max_passes)" in refused(
        max_passes=passes - 1
    )
    assert refusal(assignment(), config(max_passes=passes)) is None


def test_steps_on_guarded_data_are_bounded() -> None:
    long = assignment(settings=assignment().settings.model_copy(update={"local_learning_rate": 2.0}))
    assert refusal(long, config()) is None, "open data"
    guarded = config(max_learning_rate=1.5)
    guarded = guarded.model_copy(
        update={"datasets": [dataset.model_copy(update={"access": "guarded"}) for dataset in guarded.datasets]}
    )
    assert "a local_learning_rate of 2 is asked for, this institution allows 1.5 on guarded data" in str(
        refusal(long, guarded)
    )


@pytest.mark.parametrize(
    ("schedule", "options", "largest"),
    [
        ("exponential", {"decay": 0.5}, "of 2 is"),
        ("cosine", {"warmup_rounds": 1}, "of 2 is"),
        ("cosine", {"warmup_rounds": 9}, "of 2, 1.6 by the schedule cosine, is"),
    ],
)
def test_the_largest_learning_rate_of_a_schedule_counts(schedule: str, options: dict[str, float], largest: str) -> None:
    chosen = {"local_learning_rate": 2.0, "num_rounds": 8, "schedule": schedule, "schedule_options": options}
    long = assignment(settings=assignment().settings.model_copy(update=chosen))
    rules = config(max_learning_rate=1.5)
    rules = rules.model_copy(
        update={"datasets": [dataset.model_copy(update={"access": "guarded"}) for dataset in rules.datasets]}
    )
    assert f"a local_learning_rate {largest} asked for, this institution allows 1.5 on guarded data" in str(
        refusal(long, rules)
    )
    allowed = rules.model_copy(update={"institution": config(max_learning_rate=2).institution})
    assert "max_learning_rate" not in str(refusal(long, allowed))


def test_the_institution_chooses_who_may_ask_and_may_want_to_know_why() -> None:
    assert refused(allowed_users=["eve"]) == "this institution takes no tasks of the user ada (allowed_users)"
    assert refusal(assignment(user="ada"), config(allowed_users=["ada"])) is None
    assert "takes no tasks of the user (not named)" in str(refusal(assignment(), config(allowed_users=["ada"])))

    assert "set `purpose`" in refused(require_purpose=True)
    told = assignment().settings.model_copy(update={"purpose": "study 12"})
    assert refusal(assignment(settings=told), config(require_purpose=True)) is None


def test_the_tasks_of_a_day_are_counted_by_data_set_and_by_user() -> None:
    now = 10 * DAY_SECONDS
    earlier = tuple(AcceptedTask(now - hours * 3600, f"{hours:032x}", "mnist", "ada") for hours in (1, 2, 30))
    assert refused(accepted=earlier, now=now, max_tasks_per_day=2) == (
        "this institution takes 2 tasks on the data set mnist in 24 hours, and has taken 2: try again later"
    )
    assert "takes 1 tasks of the user ada in 24 hours" in refused(
        accepted=earlier, now=now, max_tasks_per_user_per_day=1
    )
    asked = assignment(user="ada")
    assert refusal(asked, config(max_tasks_per_day=3, max_tasks_per_user_per_day=3), earlier, now) is None
    others = tuple(AcceptedTask(now, f"{number:032x}", "cifar10", "eve") for number in range(9))
    assert refusal(asked, config(max_tasks_per_day=1, max_tasks_per_user_per_day=1), others, now) is None
    resumed = (AcceptedTask(now, asked.task, "mnist", "ada"),)
    assert refusal(asked, config(max_tasks_per_day=1), resumed, now) is None


def test_an_accepted_task_is_a_line_of_the_audit_log_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    settings = assignment().settings.model_copy(update={"purpose": "study 12"})
    asked = assignment(user="ada", settings=settings)
    log = AuditLog(path).open()
    log.add(log.accept(asked, "server"))
    assert log.accept(asked, "server") == []

    again = AuditLog(path).open()
    (line,) = map(json.loads, path.read_text().splitlines())
    assert {name: line[name] for name in ("from", "kind", "dataset", "user", "purpose")} == {
        "from": "server",
        "kind": "task",
        "dataset": "mnist",
        "user": "ada",
        "purpose": "study 12",
    }
    assert again.accept(asked, "server") == []
    (task,) = again.accepted.values()
    assert (task.uid, task.dataset, task.user) == (asked.task, "mnist", "ada")
    assert abs(task.at - log.accepted[asked.task].at) < 2


@pytest.mark.parametrize(
    ("number", "broadcast", "problem"),
    [
        (
            1,
            Broadcast(chunks=(Chunk(id=0, clients=(0, 7)),)),
            "client 7 is asked for in round 1, this node was given 0",
        ),
        (1, Broadcast(chunks=(Chunk(id=0, clients=(0,)), Chunk(id=1, clients=(0,)))), "a client is asked for twice"),
        (99, Broadcast(chunks=(Chunk(id=0, clients=(0,)),)), "round 99 is asked for, the task has"),
        (99, Broadcast(final=True), "round 99 is asked for, the task has"),
    ],
)
def test_a_model_that_asks_for_more_than_was_assigned_is_refused(
    number: int, broadcast: Broadcast, problem: str
) -> None:
    machine = ready_node()
    actions = machine.handle(GlobalArrived(number, broadcast))
    assert [type(action) for action in actions] == [EndWorkers, Report]
    assert machine.report.state == "refused"
    assert machine.report.reason.startswith(problem)
    assert not any(isinstance(action, TrainChunk) for action in actions)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_parameters": 1000}, "the model 2nn has 199,210 parameters here, this institution allows 1,000"),
        (
            {"max_memory_bytes": 1000},
            "a worker needs about 3,187,360 bytes for the model 2nn of 199,210 parameters, this institution allows",
        ),
        (
            {"installed_memory_bytes": 2_000_000},
            "a worker needs about 3,187,360 bytes for the model 2nn of 199,210 parameters, and of the memory of",
        ),
    ],
)
def test_a_model_that_is_too_large_is_refused_before_data_is_loaded(
    tmp_path: Path, limits: dict[str, int], reason: str
) -> None:
    dataset = config().datasets[0]  # there is no such file
    job = Load(assignment=assignment(), dataset=dataset, folder=tmp_path, min_examples=1, **limits)
    reply = NodeJobs(1).do(job)
    assert isinstance(reply, JobFailed)
    assert reply.refused
    assert reply.reason.startswith(reason)
