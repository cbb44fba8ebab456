"""A task that is run again has the recorded plan where it still fits; else its notes say why it is not comparable."""

from __future__ import annotations

from typing import Any

import pytest
from plugin_support import INFO, attempt, hello, planned
from test_speeds import SETTINGS, measuring_node, speed

from fedsim.messages import EngineInfo, GuardInfo, Hello
from fedsim.state_machines.candidates import Waiting
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.repeated import Repeats
from fedsim.state_machines.shares import RecordedPlan

ENGINE = EngineInfo(processor="p", torch="2")


def first(*hellos: Hello) -> Repeats:
    plan = planned(*hellos, settings=SETTINGS)
    return Repeats(7, RecordedPlan.model_validate_json(plan.record.model_dump_json()))


def again(repeats: Repeats, *hellos: Hello, **changes: Any) -> Plan:
    return planned(*hellos, settings=SETTINGS.model_copy(update=changes), repeats=repeats)


def test_a_task_has_the_plan_of_the_one_that_it_repeats_whatever_was_measured_since() -> None:
    before = [measuring_node("a", speed(chunk_clients=2)), measuring_node("b", speed(threads=1, workers=2))]
    repeats = first(*before)
    for now in ([measuring_node("a", speed(threads=1)), measuring_node("b")], [*before, hello("c", clients=90)]):
        plan = again(repeats, *now)
        assert plan.record == repeats.plan
        assert plan.chunks(1) == planned(*before, settings=SETTINGS).chunks(1)
        assert plan.notes == ("it has the plan of task 7",)
    assert plan.nodes == ("a", "b")
    assert dict(plan.left_out)["c"].startswith("is not named by the task")


def test_other_settings_keep_the_plan_if_the_clients_are_the_same() -> None:
    repeats = first(hello("a"), hello("b"))
    plan = again(repeats, hello("a"), hello("b"), local_learning_rate=0.5, seed=3)
    assert (plan.record, plan.settings.seed) == (repeats.plan, 3)


NOW: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"engine": ENGINE.model_copy(update={"torch": "3"})}, {}, "a has the torch 3, and had 2"),
    ({"engine": ENGINE.model_copy(update={"processor": "q"})}, {}, "a has the processor q, and had p"),
    ({"engine": ENGINE.model_copy(update={"device": "cuda"})}, {}, "a has the device cuda, and had cpu"),
    (
        {"engine": ENGINE.model_copy(update={"threads": 2})},
        {},
        "a trains with 2 threads in each worker, and did with 1",
    ),
    (
        {"engine": ENGINE.model_copy(update={"name": "batched"})},
        {},
        "a trains with the engine batched, and did with sequential",
    ),
    (
        {"engine": ENGINE.model_copy(update={"options": {"group_megabytes": 1}})},
        {},
        "a has other options of the engine sequential (engine_options in its client.yml)",
    ),
    ({"clients": 3}, {}, "a simulates 3 clients, and had 10"),
    ({"datasets": (INFO.model_copy(update={"digest": "c" * 64}),)}, {}, "a has other data as mnist"),
    (
        {
            "datasets": (
                INFO.model_copy(update={"guard": GuardInfo(secret_digest="d" * 64, block_size=9, num_blocks=9)}),
            )
        },
        {},
        "a has other data as mnist",
    ),
    ({"datasets": (INFO.model_copy(update={"name": "other"}),)}, {}, "a has no data set mnist"),
    ({"min_clients": 30}, {}, "institutions demand chunks of 59 clients by now"),
    ({}, {"num_clients": 10}, "it had 20 clients, this one has 10"),
    ({}, {"num_nodes": 1}, "it ran on 2 nodes, this one takes 1"),
    ({}, {"nodes": ("b",)}, "it ran on the nodes a, b"),
]


@pytest.mark.parametrize(("node", "settings", "why"), NOW)
def test_a_plan_that_fits_no_more_is_not_comparable_and_says_why(
    node: dict[str, Any], settings: dict[str, Any], why: str
) -> None:
    repeats = first(hello("a", engine=ENGINE), hello("b", engine=ENGINE))
    nodes = [hello("a", **{"engine": ENGINE, **node}), hello("b", engine=ENGINE, clients=40)]
    plan = again(repeats, *nodes, **settings)
    assert plan.notes[-1] == f"not comparable with task 7: {why}"
    assert plan.record != repeats.plan


def test_a_node_that_is_gone_is_not_waited_for_but_one_that_may_still_come_is() -> None:
    repeats = first(hello("a"), hello("b"))
    plan = again(repeats, hello("a"))
    assert plan.notes == ("not comparable with task 7: b took part and cannot now",)
    waiting = attempt(SETTINGS, [hello("a")], repeats=repeats, not_heard=["b"])
    assert waiting == Waiting("b, which took part in task 7")


def test_a_node_that_accepts_no_tasks_is_the_reason() -> None:
    plan = again(first(hello("a"), hello("b")), hello("a"), hello("b", accept_tasks=False))
    assert plan.notes[0].startswith("not comparable with task 7: the task names nodes that cannot take part: b accepts")
    assert plan.nodes == ("a",)


def test_a_measured_plan_needs_the_engine_and_the_workers_that_it_names() -> None:
    repeats = first(measuring_node("a", speed()))
    fixed = measuring_node("a", engines=("sequential",))
    plan = planned(fixed, settings=SETTINGS, repeats=repeats, measured_late={"a"})
    why = "not comparable with task 7: a trains with the engine sequential, and did with batched"
    assert why in plan.notes
    small = planned(measuring_node("a", workers=2), settings=SETTINGS, repeats=repeats, measured_late={"a"})
    assert "not comparable with task 7: a has at most 2 workers, and had 4" in small.notes


def test_another_version_and_a_plan_that_is_not_recorded_are_not_comparable() -> None:
    repeats = first(hello("a"))
    assert repeats.plan is not None
    old = Repeats(7, repeats.plan.model_copy(update={"version": "0"}))
    assert again(old, hello("a")).notes == ("not comparable with task 7: it ran with fedsim 0, this is 1",)
    assert again(Repeats(7, None), hello("a")).notes == ("not comparable with task 7: its plan is not recorded",)
